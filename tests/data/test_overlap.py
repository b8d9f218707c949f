"""The same structures or molecules in two parts, and contradictory labels of equal ones, are named."""

import warnings

import pytest
import torch

from molequi import EGNN, Dataset, Graph, Model, Quantity, fit, read_smiles
from molequi.data.overlap import contradictions, overlaps
from molequi.errors import DataWarning

P = Quantity("p")
KIND = Quantity("kind", classes=["a", "b"])


def structures(first, count, quantity=P, scale=1.0, label=float):
    return Dataset(
        [
            Graph.single(
                [[0, 0, 0], [0.9 + 0.01 * k, 0, 0]],
                ["O", "H"],
                targets={quantity.name: scale * torch.tensor([label(k)], dtype=torch.float64)},
            )
            for k in range(first, first + count)
        ],
        quantities={quantity.name: quantity},
    )


def model(*quantities):
    torch.manual_seed(0)
    return Model(EGNN(elements=["C", "H", "N", "O"], channels=8, layers=1, cutoff=3.0), quantities or [P])


def test_the_same_structures_in_two_parts():
    parts = {"train": structures(0, 5), "valid": structures(4, 3), "test": structures(6, 2)}
    (sentence,) = overlaps(parts)
    assert sentence.startswith("2 structures are in more than one part")
    assert "structure 4 in train is structure 0 in valid" in sentence
    assert overlaps({"train": structures(0, 4), "valid": structures(4, 3)}) == []


def test_fit_finds_them_wherever_parts_come_from():
    options = dict(epochs=1, logging={"progress": False})
    whole = structures(0, 8)
    for parts in (
        dict(train=whole, valid=whole),
        dict(train=whole[:5], valid=whole[5:], test=whole[:2]),
        dict(train=list(whole)[:5], valid=list(whole)[4:]),
    ):
        loaded = {n: Dataset(list(p), quantities={"p": P}) for n, p in parts.items()}
        with pytest.warns(DataWarning, match="in more than one part, so that errors of one are no test"):
            fit(model(), **loaded, **options)
    fit(model(), whole[:5], whole[5:], **options)  # the control: no warning


def test_a_split_says_it_once():
    whole = structures(0, 4) + structures(0, 4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        parts = whole.split({"train": [0, 1, 2, 3], "valid": [4, 5, 6, 7]})
        fit(model(), **parts, epochs=1, logging={"progress": False})
    assert len([w for w in told if "occur in more than one part" in str(w.message)]) == 1
    assert not [w for w in told if "are in more than one part" in str(w.message)]


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
def test_contradictory_labels_whatever_their_size(scale):
    one, other = structures(0, 4, scale=scale), structures(3, 2, scale=scale, label=lambda k: k + 0.5)
    (sentence,) = contradictions({"train": one, "valid": other})
    assert sentence.startswith("p: 1 equal structure has different labels")
    assert "structure 3 in train and structure 0 in valid" in sentence
    rounded = structures(3, 2, scale=scale, label=lambda k: k * (1 + 1e-7))
    assert contradictions({"train": one, "valid": rounded}) == []


def test_contradictory_classes_and_unknown_labels():
    first = structures(0, 2, KIND, label=lambda k: 0.0)
    (sentence,) = contradictions({"train": first + structures(0, 1, KIND, label=lambda k: 1.0)})
    assert "have a and b" in sentence
    unknown = structures(0, 2, KIND, label=lambda k: float("nan"))
    assert contradictions({"train": first + unknown}) == []


def test_molecules_are_known_however_they_are_written():
    pytest.importorskip("rdkit")

    def read(texts, labels):
        data = read_smiles(texts, optimize=None)
        graphs = [g.replace(targets={"p": torch.tensor([v]).double()}) for g, v in zip(data, labels)]
        return Dataset(graphs, quantities={"p": P}, info=data.info, reading=data.reading)

    train, test = read(["CCO", "CCC", "CC"], [1.0, 2.0, 3.0]), read(["OCC", "CN"], [4.0, 5.0])
    found = [s for s in overlaps({"train": train, "test": test}) if "molecule" in s]
    assert len(found) == 1 and "1 molecule is in more than one part" in found[0] and "CCO (" in found[0]
    (sentence,) = contradictions({"train": train, "test": test})
    assert "have 1 and 4" in sentence
    assert contradictions({"train": train, "test": read(["OCC", "CN"], [1.0, 5.0])}) == []


def waters(first, count):
    return [
        Graph.single(
            [[0.0, 0, 0], [0.9 + 0.01 * k, 0, 0.1], [-0.2, 0.9, 0]],
            ["O", "H", "H"],
            targets={"p": torch.tensor([float(k)], dtype=torch.float64)},
        )
        for k in range(first, first + count)
    ]


def data_of(graphs):
    return Dataset(graphs, quantities={"p": P})


def test_copies_that_were_moved():
    from molequi.symmetry import random_orthogonal

    plain, turn = waters(0, 5), random_orthogonal(3, generator=torch.Generator().manual_seed(0))
    moves = {
        "translated": lambda g: g.replace(pos=g.pos + 3.0),
        "rotated": lambda g: g.replace(pos=g.pos @ turn.T),
        "rounded": lambda g: g.replace(pos=((g.pos @ turn.T + 1.0) * 1e5).round() / 1e5),
        "in another order": lambda g: g.replace(pos=g.pos[[2, 0, 1]], z=g.z[[2, 0, 1]]),
    }
    for what, move in moves.items():
        parts = {"train": data_of(plain), "test": data_of([move(g) for g in plain[2:4]] + waters(5, 2))}
        (sentence,) = overlaps(parts)
        assert sentence.startswith("2 structures are in more than one part after a rotation or"), what
        assert "structure 2 in train is structure 0 in test" in sentence
    other = {
        "stretched": lambda g: g.replace(pos=1.001 * g.pos),
        "charged": lambda g: g.replace(charge=torch.ones(1, dtype=torch.float64)),
        "of other elements": lambda g: g.replace(z=torch.tensor([8, 1, 6])),
        "points": lambda g: g.replace(z=0 * g.z),
    }
    for change in other.values():
        assert overlaps({"train": data_of(plain), "test": data_of([change(g) for g in plain])}) == []
    (sentence,) = overlaps({"train": data_of(plain), "test": data_of(plain[:1])})
    assert "after a rotation" not in sentence  # equal in place
    whole = data_of(plain + [moves["rotated"](g) for g in plain])
    parts = whole.split([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    with pytest.warns(DataWarning, match="5 structures are in more than one part after a rotation"):
        fit(model(), *parts, epochs=1, logging={"progress": False})
