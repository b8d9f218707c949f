"""Non-symmetric tensors of each atom, such as NMR shieldings: one head predicts all of their parts."""

import torch

import molequi as mq
from molequi.heads import Tensor2, default_head

SHIELDING = mq.Quantity("shielding", per="node", rank=2, unit="ppm")


def planted(graph: mq.Graph) -> torch.Tensor:
    """A shielding of each atom with an isotropic, an antisymmetric and a symmetric traceless part.

    σ_i = Σ_j f(r) [1 + r_ij s_iᵀ + r_ij × …]: the outer product of two different vectors is no symmetric tensor.
    """
    difference = graph.pos[None] - graph.pos[:, None]
    length = difference.norm(dim=2) + torch.eye(len(graph.pos))
    near, far = ((difference * torch.exp(-length / a)[:, :, None]).sum(1) for a in (0.6, 1.5))
    isotropic = torch.exp(-length).sum(1)[:, None, None] * torch.eye(3)
    return 10 * (isotropic + torch.einsum("ni,nj->nij", near, far))


def test_planted_shieldings_are_recovered():
    generator = torch.Generator().manual_seed(0)
    ideal = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [0.4, 0.5, 1.3]], dtype=torch.float64)
    graphs = []
    for _ in range(50):
        noise = 0.1 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
        graph = mq.Graph.single(ideal + noise, ["O", "H", "H", "N"])
        graphs.append(graph.replace(targets={"shielding": planted(graph)}))
    labels = torch.cat([g.targets["shielding"] for g in graphs])
    parts = {
        "isotropic": labels.diagonal(dim1=1, dim2=2).mean(1),
        "antisymmetric": labels - labels.transpose(1, 2),
        "symmetric": labels + labels.transpose(1, 2),
    }
    assert all(float(part.std()) > 0.1 for part in parts.values())  # none of them is absent
    head = default_head(SHIELDING)
    assert isinstance(head, Tensor2) and head.symmetric and head.antisymmetric
    torch.manual_seed(0)
    net = mq.Model(mq.PaiNN(elements=["H", "N", "O"], channels=16, layers=1), [SHIELDING])
    train, test = (mq.connect(mq.collate(part), net.cutoff) for part in (graphs[:40], graphs[40:]))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 100)
        optimizer.zero_grad()
        (net(train)["shielding"] - train.targets["shielding"]).square().mean().backward()
        optimizer.step()
    found, wanted = net.eval()(test)["shielding"].double(), test.targets["shielding"].double()
    for part in (lambda t: t - t.transpose(1, 2), lambda t: t + t.transpose(1, 2)):
        error = (part(found) - part(wanted)).square().mean().sqrt()
        spread = (part(wanted) - part(wanted).mean(0)).square().mean().sqrt()
        assert float(error / spread) < 0.4
    # a symmetric head cannot have the antisymmetric part
    symmetric = mq.Quantity("shielding", per="node", rank=2, unit="ppm", symmetry="ij=ji")
    assert not default_head(symmetric).antisymmetric
