"""EGNN with normalized invariants: bounded, equivariant, and the same where it is off."""

import torch

import molequi as mq
from molequi.audit import audit

ETHANOL = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))[0].replace(targets={})


def backbone(**options):
    torch.manual_seed(0)
    return mq.EGNN(elements=["C", "H", "O"], cutoff=5.0, channels=16, layers=6, **options).double()


def test_weights_that_grow_do_not_make_invariants_grow():
    graph = mq.connect(ETHANOL, 5.0)
    largest = {}
    for normalize in (False, True):
        made = backbone(normalize=normalize)
        with torch.no_grad():
            for layer in made.layers:
                for parameter in layer.update.parameters():
                    parameter *= 10
            largest[normalize] = float(made(graph).scalars.square().mean(1).sqrt().max())
    assert largest[True] <= 1.0 and largest[False] > 1e3


def test_it_is_equivariant_has_the_same_weights_and_is_kept(tmp_path):
    plain, made = backbone(), backbone(normalize=True)
    assert plain.state_dict().keys() == made.state_dict().keys() and made.hparams["normalize"] is True
    model = mq.Model(made, ["energy", "forces"])
    assert audit(model, [ETHANOL], draws=2).passed
    again = mq.load(mq.save(model, tmp_path / "m.safetensors"))
    graph = mq.connect(ETHANOL, 5.0)
    assert torch.equal(again(graph)["energy"], model.eval()(graph)["energy"])
    assert not torch.allclose(mq.Model(plain, ["energy"]).eval()(graph)["energy"], model(graph)["energy"])


def test_a_relaxed_network_whose_gates_are_closed_is_the_same():
    made = backbone(normalize=True)
    options = dict(elements=["C", "H", "O"], cutoff=5.0, channels=16, layers=6, gates=(1.0, 1.0, 0.0))
    graph = mq.connect(ETHANOL, 5.0)
    for normalize in (True, False):
        relaxed = mq.RelaxedEGNN(**options, normalize=normalize).double()
        relaxed.load_state_dict(made.state_dict(), strict=False)
        assert torch.allclose(relaxed(graph).scalars, made(graph).scalars) is normalize
