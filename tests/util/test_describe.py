"""Options as tables: everything from the signature and the docstring."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le

import molequi as mq
from molequi.util.describe import REQUIRED, kind_of, options_of, shown


def simulate(
    path: str | Path,
    *,
    kind: Literal["a", "b"] | None = "a",
    force: Annotated[float, Gt(0)] | None = None,
    degree: Annotated[int, Ge(0), Le(6)] = 2,
    names: Sequence[str] = ("x", "y"),
    keys: Mapping[str, str] | None = None,
    fast: bool = False,
    other: Any = None,
    seed: int = 0,
) -> None:
    """Simulate.

    Parameters
    ----------
    path : str or Path
        The file.
    kind : {"a", "b"} or None
        "a" is quick. "b" is exact.
    force : float, > 0, optional
        The largest force, in eV/Å. It stops the run; None never does.
    degree : int
        Highest degree (as in Batatia et al. 2022, eq. 3); 0 is a scalar. More is slower.
    names, keys
        As in `simulate_more`.
    fast : bool
        Skip checks.
    other : file or mapping, optional
        Anything.
    """


def simulate_more(names: Sequence[str]) -> None:
    """More.

    Parameters
    ----------
    names : sequence of str
        Names of atoms.
    """


def test_each_column():
    found = options_of(simulate, like=(simulate_more,))
    assert {name: option.row()[1:] for name, option in found.items()} == {
        "path": ["path", REQUIRED, "", "The file"],
        "kind": ["a | b | none", "a", "", '"a" is quick'],
        "force": ["float > 0", "", "eV/Å", "The largest force, in eV/Å"],
        "degree": ["int >= 0, <= 6", "2", "", "Highest degree (as in Batatia et al. 2022, eq. 3)"],
        "names": ["text ...", "x y", "", "Names of atoms"],
        "keys": ["name=text ...", "", "", "As in simulate_more"],
        "fast": ["true | false", "false", "", "Skip checks"],
        "other": ["file or mapping", "", "", "Anything"],
        "seed": ["int", "0", "", ""],
    }
    assert "path" not in options_of(simulate, leave_out=("path",))


def test_choices_for_completion():
    found = options_of(simulate)
    assert found["kind"].choices == ("a", "b") and found["fast"].choices == ("true", "false")
    assert found["force"].choices == ()


@pytest.mark.parametrize(
    "value, text",
    [
        (None, ""),
        ((), ""),
        (mq.Optimizer(), "adam"),
        (mq.Validation(), ""),
        (mq.Inputs(), ""),
        ("x", "x"),
        (1e-3, "0.001"),
    ],
)
def test_defaults_as_they_are_typed(value, text):
    assert shown(value) == text


def test_units_of_real_functions_are_those_of_their_documentation():
    units = {name: option.unit for name, option in options_of(mq.md).items()}
    assert (units["timestep"], units["temperature"], units["time"], units["seed"]) == ("fs", "K", "ps", "")
    assert options_of(mq.relax)["fmax"].unit == "eV/Å" and options_of(mq.NequIP)["cutoff"].unit == "Å"
    assert (
        options_of(mq.Barostat)["pressure"].unit == "bar"
        and options_of(mq.Thermostat)["friction"].unit == "1/fs"
    )


def test_a_choice_in_the_docstring_is_shown_for_a_text():
    assert options_of(mq.Calculator)["device"].kind == "auto | cpu | cuda | cuda:1"
    assert kind_of(int | str) == "int | text" and kind_of(str | Path | Sequence[str]) == "path | text ..."
