"""Small flow models."""

import torch

import molequi as mq
from molequi.generative import FlowMatching

QUIET = {"progress": False}


def flow_model(data, backbone=mq.EGNN, **options):
    """An untrained model with the inputs of these data."""
    first = data[0]
    inputs = mq.Inputs(
        node_features=first.x.shape[1],
        node_vectors=0 if first.vec is None else first.vec.shape[1],
        edge_features=0 if first.pair_attr is None else first.pair_attr.shape[1],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = backbone(
            cutoff=None,
            inputs=inputs,
            **{"elements": data.elements, "channels": 12, "layers": 2, **options},
        )
        more = [q for name, q in data.quantities.items() if name != "flow_velocity"]
        return mq.Model(net, [mq.heads.Velocity(), *more])


def trained(data, **options):
    model = flow_model(data, **options)
    half = len(data) // 2
    return mq.fit(
        model, data[:half], data[half:], epochs=2, batch_size=4, terms=[FlowMatching()], logging=QUIET
    ).model


def conformers(smiles, count=3):
    """An RDKit molecule with conformers."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert len(AllChem.EmbedMultipleConfs(mol, count, randomSeed=2)) == count
    return mol
