"""Names of other packages: one table, whose right-hand sides exist, and that shadows no option."""

import inspect
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

import molequi as mq
from molequi.errors import ConfigError, UnknownKeywordError
from molequi.heads import HEADS
from molequi.readers import READERS, load_dataset
from molequi.training.options import GROUPS
from molequi.util.common_names import COMMON_NAMES, COMMON_VALUES, OWNERS, Way, common_value, common_way
from molequi.util.signature import check_call

FUNCTIONS = [
    *mq.models.BACKBONES.values(),
    *HEADS.values(),
    *READERS.values(),
    *(mq.fit, mq.md, mq.relax, mq.audit, mq.predict, mq.evaluate, mq.Calculator, mq.load, mq.lie_errors),
    *GROUPS.values(),
    mq.Dataset.split,
]
PARAMETERS = {function: [*inspect.signature(function).parameters] for function in FUNCTIONS}
KNOWN = {name for names in PARAMETERS.values() for name in names}
GROUPED = {"barostat": mq.Barostat, "thermostat": mq.Thermostat, **GROUPS}


@pytest.mark.parametrize("name", COMMON_NAMES)
def test_what_the_table_says_exists(name):
    for way in COMMON_NAMES[name]:
        assert way.head in KNOWN or way.head == "split", way
        if way.head in GROUPED and "." in way.argument:
            assert way.last in {f.name for f in fields(GROUPED[way.head])}, way


def test_the_names_of_the_issue_are_known():
    wanted = (
        "r_max r_cut learning_rate max_epochs n_epochs batch hidden_channels hidden_irreps num_layers num_features "
        "dt gpu energy_weight forces_weight early_stopping lr_scheduler n_steps temperature_K pressure_GPa"
    )
    assert {*wanted.split()} <= {*COMMON_NAMES}
    assert "fmax" in OWNERS and "npt_berendsen" in COMMON_VALUES["ensemble"]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_no_option_is_shadowed(function):
    """A name of the table that a function has itself is an option there, and no message mentions another one."""
    for name in set(PARAMETERS[function]) & set(COMMON_NAMES):
        try:
            check_call(function, {name: object()}, where="f", leave_out=("fabric",))
        except ConfigError as error:
            assert f"f.{name}: the name here" not in str(error)


@pytest.mark.parametrize("kind", mq.models.BACKBONES.values(), ids=lambda k: k.__name__)
def test_backbones_know_names_of_other_packages(kind):
    for name, right in {"r_max": "cutoff", "hidden_channels": "channels", "num_layers": "layers"}.items():
        if right not in inspect.signature(kind).parameters:  # a backbone for clouds has no cutoff
            continue
        with pytest.raises(ConfigError, match=rf"{name}: the name here is '{right}'.*; write {right}=4$"):
            kind(elements=["H"], **{name: 4})


def test_values_are_translated_and_units_said():
    assert Way("barostat.pressure", factor=1e4).given(0.1) == 1000.0
    with pytest.raises(UnknownKeywordError, match=r'write barostat=\{"pressure": 1000.0\}$'):
        mq.md("a.xyz", "m.safetensors", pressure_GPa=0.1)
    with pytest.raises(UnknownKeywordError, match=r"in fs, without ase.units.fs\); write timestep=0.5$"):
        mq.md("a.xyz", "m.safetensors", dt=0.5)
    with pytest.raises(UnknownKeywordError, match=r'write loss=\{"energy": 10\}$'):
        mq.fit(None, None, None, energy_weight=10)


def test_ensembles_of_other_programs_lead_to_one_that_exists():
    hints = get_type_hints(mq.md)["ensemble"]
    allowed = get_args(hints)
    for name in COMMON_VALUES["ensemble"]:
        assert common_value("ensemble", name, allowed) in allowed
    assert (
        common_value("ensemble", "NPT", allowed) == "npt"
        and common_value("ensemble", "NVT", allowed) == "nvt"
    )
    assert common_value("ensemble", "nvt", ["nve", "nvt"]) == "nvt"
    assert common_value("ensemble", "grand canonical", allowed) == ""


def test_a_name_without_an_option_here_is_not_in_the_way():
    assert common_way("r_max", ["lr", "epochs"]) is None
    with pytest.raises(ConfigError, match="did you mean 'index'"):
        load_dataset("a.xyz", indx=":")


def test_an_option_of_something_else_says_of_what():
    with pytest.raises(UnknownKeywordError, match=r"it is an option of fit: mq\.fit\(…, epochs=3\)$"):
        mq.Model(mq.EGNN(elements=["H"]), ["energy"], max_epochs=3)


def test_misspelt_values_name_the_nearest():
    with pytest.raises(ConfigError, match="wanted 'adam', 'adamw' or 'soap'; did you mean 'adamw'"):
        mq.Optimizer("adamww")
    with pytest.raises(ConfigError, match="wanted 'adam', 'adamw' or 'soap'; write 'adamw'$"):
        mq.Optimizer("AdamW")
