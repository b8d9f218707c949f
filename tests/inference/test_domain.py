"""What a model was trained on is in its file, and structures of other elements, charges or spins are named."""

import warnings

import pytest
import torch
from ase import Atoms

from molequi import (
    EGNN,
    Calculator,
    Dataset,
    Ensemble,
    Graph,
    Inputs,
    Model,
    evaluate,
    fit,
    load,
    predict,
    save,
)
from molequi.domain import DomainCheck, Seen, domain_of, keep_domain
from molequi.errors import DataWarning
from molequi.simulation import relax

QUIET = dict(epochs=1, logging={"progress": False})


def made(element="O", charge=None, spin=None, count=6, start=0):
    """Molecules of two hydrogen atoms and another atom, with energies."""
    return Dataset(
        [
            Graph.single(
                [[0, 0, 0], [0.96 + 0.01 * k, 0, 0], [-0.24, 0.93, 0]],
                [element, "H", "H"],
                charge=charge,
                spin=spin,
                targets={"energy": torch.tensor([-14.0 + 0.1 * k], dtype=torch.float64)},
            )
            for k in range(start, start + count)
        ]
    )


def small(**inputs):
    torch.manual_seed(0)
    backbone = EGNN(elements=["H", "O", "S"], channels=8, layers=1, cutoff=3.0, inputs=Inputs(**inputs))
    return Model(backbone, ["energy"])


def trained(train, valid=None, **inputs):
    return fit(small(**inputs), train, made(start=10) if valid is None else valid, **QUIET).model


def told(function):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        function()
    return [str(w.message) for w in found if issubclass(w.category, DataWarning)]


def test_the_file_says_what_the_model_was_trained_on(tmp_path):
    train, valid = made(charge=0.0, spin=1.0), made(charge=0.0, spin=1.0, start=10)
    fit(small(), train, valid, **QUIET, out=tmp_path)
    kept = load(tmp_path).metadata["trained_on"]
    assert kept == {"elements": ["H", "O"], "charge": [0.0], "spin": [1.0]}


def test_elements_that_only_another_part_has_are_named_at_the_start():
    with pytest.warns(DataWarning, match=r"the valid data have S, which no structure of the training"):
        fit(small(), made(), made("S"), **QUIET)
    with pytest.warns(DataWarning, match=r"the test data have a total charge of -1, which no"):
        fit(small(), made(charge=0.0), made(charge=0.0, start=10), test=made(charge=-1.0, start=20), **QUIET)


def test_every_way_to_a_prediction_names_an_element_that_was_not_trained(tmp_path):
    model = trained(made())
    path = save(model, tmp_path / "m.safetensors")
    other = made("S")
    atoms = Atoms("SH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.write(tmp_path / "s.xyz")
    first = r"S occurs in no structure that this model was trained on \(it was trained on H, O\)"
    for way in (
        lambda: evaluate(path, other),
        lambda: predict(path, other, progress=False),
        lambda: predict(path, str(tmp_path / "s.xyz"), progress=False),
        lambda: Calculator(path).calculate(atoms),
        lambda: relax(atoms.copy(), path, steps=1, progress=False),
    ):
        with pytest.warns(DataWarning, match=first):
            way()
    assert not told(lambda: predict(path, made(), progress=False))  # the control


def test_the_calculator_names_each_thing_once():
    calculator = Calculator(trained(made()))
    atoms = Atoms("SH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])

    def twice():
        calculator.calculate(atoms)
        moved = atoms.copy()
        moved.positions += 0.1
        calculator.calculate(moved)
        calculator.calculate(Atoms("OH", [[0, 0, 0], [0.96, 0, 0]]))
        calculator.calculate(atoms)

    assert len(told(twice)) == 1


def test_ions_and_radicals_are_named(tmp_path):
    model = trained(made(charge=0.0, spin=1.0), made(charge=0.0, spin=1.0, start=10))
    atoms = Atoms("OH", [[0, 0, 0], [0.96, 0, 0]], info={"charge": -1, "spin": 2})
    atoms.write(tmp_path / "ion.xyz")
    for way in (
        lambda: predict(model, str(tmp_path / "ion.xyz")),
        lambda: Calculator(model).calculate(atoms),
    ):
        found = " ".join(told(way))
        assert "a total charge of -1; this model was trained on 0 alone, and does not take it" in found
        assert "a spin multiplicity of 2; this model was trained on 1 alone" in found


def test_a_model_that_takes_the_charge_knows_only_those_that_it_saw():
    model = trained(made(charge=0.0), made(charge=0.0, start=10), charge=True)
    (sentence,) = told(lambda: predict(model, made(charge=-1.0, count=1)))
    assert "total charge of -1" in sentence and "trained on 0 alone, so that" in sentence


def test_molecules_as_smiles_are_checked():
    pytest.importorskip("rdkit")
    from molequi import Quantity, read_smiles

    q = Quantity("p")
    texts = ["C", "CC", "CCC", "O", "CO", "CCO"]
    data = read_smiles(texts)
    data = Dataset(
        [g.replace(targets={"p": torch.tensor([float(k)]).double()}) for k, g in enumerate(data)],
        quantities={"p": q},
    )
    model = Model(EGNN(elements=["H", "C", "O"], channels=8, layers=1, cutoff=3.0), [q])
    fit(model, data[[0, 1, 2, 4, 5]], data[[3]], **QUIET)
    found = told(lambda: predict(model, ["[CH3-]", "[CH3]", "CC(=O)[O-]"], progress=False))
    assert len(found) == 2
    assert "row 0, [CH3-]: a total charge of -1" in found[0]
    assert "row 1, [CH3]: a spin multiplicity of 2" in found[1]


def test_what_a_model_was_trained_on_adds_up_and_an_ensemble_keeps_it(tmp_path):
    fit(small(), made(), made(start=10), **QUIET, out=tmp_path / "base")
    tuned = fit(load(tmp_path / "base"), made("S"), made("S", start=10), **QUIET).model
    assert tuned.metadata["trained_on"]["elements"] == ["H", "O", "S"]
    old = load(tmp_path / "base")
    del old.metadata["trained_on"]  # a file of an earlier version does not say what it knows
    assert "trained_on" not in fit(old, made("S"), made("S", start=10), **QUIET).model.metadata
    result = fit(small(), made(), made(start=10), **QUIET, seed=[0, 1], out=tmp_path / "both")
    assert isinstance(result.model, Ensemble)
    assert load(tmp_path / "both").metadata["trained_on"] == {"elements": ["H", "O"]}


def test_a_model_that_was_not_trained_claims_nothing():
    assert DomainCheck(small()).sentences([Seen("here", [16], {"charge": 3.0})]) == []
    assert domain_of(made(charge=1.0)) == {"elements": ["H", "O"], "charge": [1.0]}


def test_charges_that_the_training_data_do_not_state():
    model = trained(made(), made(start=6))
    assert "charge" not in model.metadata["trained_on"]
    found = told(lambda: predict(model, made(charge=1.0, spin=2.0), progress=False))
    assert len(found) == 2 and all("do not all state theirs" in text for text in found)
    assert "a total charge of 1" in found[0] and "a spin multiplicity of 2" in found[1]
    assert not told(lambda: predict(model, made(charge=0.0, spin=1.0), progress=False))  # as usual
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], info={"charge": -1})
    atoms.calc = Calculator(model)
    (text,) = told(atoms.get_potential_energy)
    assert text.startswith("H2O: a total charge of -1")
    half = made(charge=1.0) + made(charge=1.0, start=6)
    (text,) = told(
        lambda: predict(trained(half, made(charge=1.0, start=12)), made(charge=-1.0), progress=False)
    )
    assert "trained on 1 alone" in text  # the control: what is stated is compared


def test_an_ensemble_made_in_python_knows_what_all_members_know(tmp_path):
    with_sulfur = made() + made("S", start=6)
    members = [trained(made(charge=0.0), made(charge=0.0, start=10)), small()]
    keep_domain(members[1], with_sulfur)
    joined = Ensemble(members)
    assert joined.metadata == {"trained_on": {"elements": ["H", "O"]}}
    (text,) = told(lambda: predict(joined, made("S"), progress=False))
    assert "S occurs in no structure that this model was trained on" in text
    save(joined, tmp_path / "e.safetensors")
    assert load(tmp_path / "e.safetensors").metadata == joined.metadata
    assert Ensemble([members[0], small()]).metadata == {}  # of one member nothing is known
    assert joined.calibrated({"energy": 2.0}).metadata == joined.metadata
    members[0].metadata["reading"] = members[1].metadata["reading"] = {"normalize": "rms"}
    assert Ensemble(members).metadata["reading"] == {"normalize": "rms"}
    members[1].metadata["reading"] = {"normalize": None}
    assert "reading" not in Ensemble(members).metadata


def in_field(strength, count=6, start=0):
    """Neutral molecules, every second one in a field."""
    data = made(charge=0.0, count=count, start=start)
    fields = [torch.tensor([[0.0, 0.6, 0.8]]).double() * strength * (k % 2) for k in range(count)]
    return Dataset([g.replace(electric_field=f) if f.any() else g for g, f in zip(data, fields)])


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_fields_stronger_than_those_of_the_training_are_named(tmp_path, strength):
    inputs = {"charge": True, "electric_field": True}
    model = trained(in_field(strength), in_field(strength, start=10), **inputs)
    path = save(model, tmp_path / "m.safetensors")
    assert load(path).metadata["trained_on"].get("electric_field", 0.0) == pytest.approx(strength)
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], info={"charge": 0})
    known = (
        f"fields of at most {strength:g} V/Å" if strength else "without fields, and knows at most the resp"
    )
    for way in (
        lambda: predict(path, in_field(0.3), progress=False),
        lambda: Calculator(path).calculate(atoms),
    ):
        atoms.info["electric_field"] = [0.3, 0.0, 0.0]
        (text,) = told(way)
        assert f"an electric field of 0.3 V/Å; this model was trained {'on ' * bool(strength)}{known}" in text
        atoms.info["electric_field"] = [0.0, 0.0, strength]
    assert not told(lambda: predict(path, in_field(strength), progress=False))  # the control
    assert not told(lambda: Calculator(path).calculate(atoms))


def test_a_field_that_grows_is_named_once_and_parts_are_compared():
    inputs = {"charge": True, "electric_field": True}
    model = trained(in_field(0.1), in_field(0.1, start=10), **inputs)
    calculator = Calculator(model)
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], info={"charge": 0})

    def ramp():
        for size in (0.1, 0.2, 0.3):
            atoms.info["electric_field"] = [0.0, 0.0, size]
            calculator.calculate(atoms)

    assert len(told(ramp)) == 1
    with pytest.warns(DataWarning, match=r"the valid data have an electric field of 0\.5 V/Å, which no"):
        tuned = fit(model, in_field(0.2), in_field(0.5, start=10), **QUIET).model
    assert tuned.metadata["trained_on"]["electric_field"] == pytest.approx(0.2)
    again = fit(tuned, made(charge=0.0), made(charge=0.0, start=10), **QUIET).model
    assert again.metadata["trained_on"]["electric_field"] == pytest.approx(0.2)


def test_files_without_an_entry_for_fields_make_no_claim_about_them(tmp_path):
    inputs = {"charge": True, "electric_field": True}
    model = trained(in_field(0.0), in_field(0.0, start=10), **inputs)
    assert model.metadata["trained_on"]["electric_field"] == 0.0
    assert told(lambda: predict(model, in_field(0.3), progress=False))  # the control
    old = load(save(model, tmp_path / "m.safetensors"))
    del old.metadata["trained_on"]["electric_field"]  # as earlier versions wrote them
    assert not told(lambda: predict(old, in_field(0.3), progress=False))
    tuned = fit(old, in_field(0.2), in_field(0.3, start=10), **QUIET).model  # no warning of the parts
    assert "electric_field" not in tuned.metadata["trained_on"]
    assert "electric_field" not in Ensemble([model, old]).metadata["trained_on"]
    known = trained(in_field(0.1), in_field(0.1, start=10), **inputs)
    assert Ensemble([model, known]).metadata["trained_on"]["electric_field"] == 0.0
    assert Ensemble([known, known]).metadata["trained_on"]["electric_field"] == pytest.approx(0.1)
