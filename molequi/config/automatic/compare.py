"""Compare networks on a file of data or on a run."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from molequi.config.automatic.asked import Asked, asked_of
from molequi.config.automatic.choose import is_data
from molequi.config.automatic.planned import free_folder, planned, print_plan
from molequi.config.automatic.train import train_file
from molequi.config.candidates import NETWORKS
from molequi.config.compare import RATES, CompareOptions, carry_out_comparison
from molequi.config.names import Names
from molequi.config.places import check_published
from molequi.config.schema import read_config
from molequi.config.sections import find_config
from molequi.errors import ConfigError
from molequi.inference.comparisons import Comparison
from molequi.util.signature import check_call


def compare(
    data: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    networks: Sequence[str] = NETWORKS,
    own: Mapping[str, Mapping[str, Any]] | None = None,
    minutes: Annotated[float, Gt(0)] = 5.0,
    seeds: Sequence[Annotated[int, Ge(0)]] = (0, 1),
    sizes: Sequence[Annotated[int, Gt(0)]] = (),
    rates: Sequence[Annotated[float, Gt(0)]] = RATES,
    other: str | os.PathLike[str] | None = None,
    simulate: Annotated[int, Ge(0)] = 1000,
    out: str | os.PathLike[str] | None = None,
    backbones: Mapping[str, Any] | None = None,
    heads: Mapping[str, Any] | None = None,
    **of_data: Any,
) -> Comparison:
    """Train equivariant, approximately equivariant and unconstrained networks for the same time, and compare.

    Each training has the same number of minutes of processor time; on a GPU, where processor time means
    nothing, of the wall. Validation counts. Nothing is compiled, since later seeds would find the program of
    the first. Before, the learning rate of each network is chosen by its validation error after short
    trainings of a quarter of the minutes; these are not counted in the minutes, and are the same for all.

    Measured are errors against seconds and against the number of structures, seconds of a step, memory,
    equivariance errors on rotated and on mirrored structures, and of force fields the drift of the energy in
    a simulation at constant energy. The recommendation follows rules that `molequi.inference.ranking` and
    `molequi.inference.recommendation` state. A training that fails, because its loss or its errors are not
    finite or memory runs out, is a row of the table.

    Each training has a folder of its own. If the same comparison is started again, finished trainings are not
    run again, and an interrupted one continues. Networks, seeds and sizes can be added.

    Parameters
    ----------
    data : path, str or Mapping
        A file of data as in `molequi.train_file`, whose run is chosen by fixed rules; or a run as in
        `molequi.run`: a YAML file, the name of a recipe, or a mapping.
    overrides : sequence of str
        Settings that replace those of the run, such as ``"train.batch_size=2"``. Options that the comparison
        sets for all networks, such as ``train.epochs``, are refused.
    networks : sequence of str
        Names of backbones. ``Transformer+rotations`` is trained on randomly rotated copies. By default all
        that can be trained on these data. The network of the run has the sizes of the run, the others those
        of `molequi.config.candidates`.
    own : mapping of str to mapping, optional
        Networks of your own setting, beside `networks`: ``{"wide": {"backbone": {"EGNN": {"channels":
        256}}, "train": {"lr": 1e-3}}}``. Options of train are merged with those of the run; loss, batch size
        and terms are replaced.
    minutes : float, > 0
        Minutes of each training.
    seeds : sequence of int
        Seeds; each network is trained once with each.
    sizes : sequence of int
        Numbers of training structures on which all networks are trained too, beside all structures.
    rates : sequence of float
        Factors of the learning rate of the run that are tried for each network. One factor is taken as it is.
    other : path, optional
        Labelled data of other conditions, such as a higher temperature; their errors have a column.
    simulate : int
        Steps of 0.5 fs of the simulation; 0 for none.
    out : path, optional
        Folder; by default that of the run with ``-compare`` at its end. It gets ``comparison.json``,
        ``comparison.csv``, ``comparison.html`` and ``comparison.png``.
    backbones, heads : Mapping, optional
        Your own classes by name, as in `molequi.run`.
    **of_data
        For a file of data, options of `molequi.train_file` that describe it: target, units, keys, stress,
        column, recipe, skip, allow.

    Returns
    -------
    Comparison
        ``print(found)`` shows the tables and the recommendation; ``found.recommendation`` is a name.

    Raises
    ------
    ConfigError, DataError, TrainingError, CheckpointError
        As `molequi.train_file` and `molequi.run` do, and for networks that do not exist or do not fit the
        data.
    """
    given: dict[str, Any] = {
        "networks": networks,
        "own": own,
        "minutes": minutes,
        "seeds": seeds,
        "sizes": sizes,
    }
    given |= {"rates": rates, "other": other, "simulate": simulate, "out": out}
    check_call(compare, given, where="compare", leave_out=("data", "overrides", "of_data"))
    names = Names.of(backbones=backbones, heads=heads)
    path = None if other is None else os.fspath(other)
    options = CompareOptions(
        tuple(networks), own or {}, minutes, tuple(seeds), tuple(sizes), tuple(rates), simulate, path
    )
    in_python = isinstance(data, Mapping) or own or backbones or heads
    words = None if in_python else os.fspath(data)  # type: ignore[arg-type]
    if isinstance(data, Mapping) or not is_data(os.fspath(data)):
        if of_data:
            raise ConfigError(
                f"compare: {next(iter(of_data))} describes a file of data, and this is a run, which says it "
                "itself; leave it out"
            )
        settings = read_config(data, overrides, names)
        if not isinstance(data, Mapping):
            check_published(find_config(data), settings)
        name = "run" if isinstance(data, Mapping) else Path(data).stem
        run = settings["train"].get("out") or f"runs/{name}"
        folder = Path(out) if out is not None else Path(f"{run}-compare")
        typed = partial(_typed, words, Asked(), list(overrides), {**vars(options), "out": out})
        return carry_out_comparison(settings, names, options, folder, typed, overrides=overrides)
    check_call(train_file, of_data, where="compare", leave_out=("path", "overrides", "out", "members"))
    asked = replace(asked_of(**of_data), command="compare")
    plan, settings = planned(os.fspath(data), overrides, asked)
    run = settings["train"].get("out") or free_folder(Path(data), settings)
    folder = Path(out) if out is not None else Path(f"{run}-compare")
    print_plan(plan, settings, folder)
    typed = partial(_typed, words, asked, list(overrides), {**vars(options), "out": out})
    return carry_out_comparison(settings, names, options, folder, typed, automatic=True, overrides=overrides)


def _typed(
    data: str | None, asked: Asked, overrides: Sequence[str], given: Mapping[str, Any], name: str, value: str
) -> str:
    """How an option is typed: as a command, or for what only Python can say as an argument."""
    if data is None:
        return f"out={value!r}" if name == "out" else f"overrides=['train.{name}={value}']"
    kept = [item for item in overrides if item.partition("=")[0] != f"train.{name}"]
    words = ["molequi", "compare", data, *kept, *([] if name == "out" else [f"train.{name}={value}"])]
    words += asked.words()
    for field in fields(CompareOptions):
        option = given[field.name]
        if field.name == "own" or option == field.default:
            continue
        words += [f"--{field.name}", *map(str, option if isinstance(option, (tuple, list)) else [option])]
    out = value if name == "out" else given["out"]
    return shlex.join([*words, *([] if out is None else ["--out", str(out)])])
