import cProfile,pstats,torch,molequi as mq,time
torch.set_num_threads(1)
D="/work/shared/data/"
data=mq.data.read_extxyz(D+"acac/train_300K.xyz"); tr,va=data.split([450,50],seed=0)
m=mq.Model(mq.GauntACE(elements=data.elements,l_out=0),["energy","forces"])
mq.fit(m,tr,va,epochs=1,batch_size=1,lr=1e-3,out=None,progress=False,accelerate=True,validate_every=100,loss={"energy":1,"forces":100})
pr=cProfile.Profile(); t=time.process_time(); pr.enable()
mq.fit(m,tr,va,epochs=1,batch_size=1,lr=1e-3,out=None,progress=False,accelerate=True,validate_every=100,loss={"energy":1,"forces":100})
pr.disable(); print((time.process_time()-t)/450*1e3,"ms")
pstats.Stats(pr).sort_stats("tottime").print_stats(32)
