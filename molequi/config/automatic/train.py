"""Train a model on a file of data, with everything else chosen."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Gt

from molequi.config.automatic.asked import Asked, asked_of
from molequi.config.automatic.planned import free_folder, planned, print_plan
from molequi.config.names import Names
from molequi.config.run import carry_out
from molequi.errors import OtherSettingsError
from molequi.training.devices import together
from molequi.training.ensembles import EnsembleResult
from molequi.training.result import Result
from molequi.util.launchers import is_first_process
from molequi.util.signature import check_keywords


@check_keywords()
def train_file(
    path: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    target: Sequence[str] = (),
    units: str | Mapping[str, str] | None = None,
    keys: Mapping[str, str] | None = None,
    stress: bool | None = None,
    column: str | None = None,
    recipe: str | None = None,
    members: Annotated[int, Gt(0)] | None = None,
    skip: bool = False,
    allow: Sequence[str] = (),
    out: str | os.PathLike | None = None,
) -> Result | EnsembleResult:
    """Train a model on a file, with model, split and training chosen by fixed rules.

    Tables of SMILES and SDF files are split by scaffold and get an ensemble of the recipe ``property``, whose
    standard deviation is calibrated. Structures with energies get a force field of the recipe ``small``;
    trajectories stay together, or blocks of successive frames. Point clouds get the recipe ``classify``, and
    each class has its share of every part. Parts that an .npz file or a folder names are kept.

    The choices are printed, with their reasons, and written to ``config.yaml`` in the folder of the run.
    ``molequi train config.yaml`` trains the same weights.

    Parameters
    ----------
    path : path
        A table of SMILES (.csv, .tsv, .txt), an SDF file, a file that ASE reads, an .npz file, or a folder
        with a subfolder of point clouds for each class.
    overrides : sequence of str
        Settings that replace those that were chosen, such as ``"train.lr=1e-3"``.
    target : sequence of str
        What is to be learnt, one name or several, by the names of the file: columns of a table, properties of
        an SDF file, quantities or columns of structures, labels of clouds. By default energy, forces and
        stress of structures, and the class of clouds.
    units : str or mapping of str to str, optional
        Unit in the file: of the only target, or by target.
    keys : mapping of str to str, optional
        Name in the file by quantity, ``{"forces": "REF_forces"}``, for structures.
    stress : bool, optional
        Whether the stress is learnt. None: if the file has it.
    column : str, optional
        The column with the SMILES; by default it is found.
    recipe : str, optional
        Another recipe, whose model and training are taken.
    members : int, > 0, optional
        Number of models in the ensemble; by default 3 for up to 5,000 molecules, else 1.
    skip : bool
        Leave out molecules that cannot be used.
    allow : sequence of str
        Heuristics that are overruled for structures, such as "close-atoms" for dimers at 0.35 Å that are
        wanted; see `molequi.data.heuristics`.
    out : path, optional
        Folder of the run; by default ``runs/NAME``, or ``runs/NAME-2`` and so on if that holds another run.

    Returns
    -------
    Result or EnsembleResult
        As `molequi.run` returns it.

    Raises
    ------
    ConfigError
        If the file does not say what to learn; the message lists what there is, with the command to type.
    DataError
        If the file cannot be read.
    TrainingError, CheckpointError
        As `molequi.fit` does.
    """
    asked = asked_of(target, units, keys, stress, column, recipe, members, skip, allow)
    with together():
        plan, settings = planned(os.fspath(path), overrides, asked)
    folder = Path(settings["train"].get("out") or out or free_folder(Path(path), settings))
    settings["train"]["out"] = str(folder)
    if is_first_process():
        print_plan(plan, settings, folder)
    try:
        return carry_out(settings, Names(), automatic=True)
    except OtherSettingsError as error:
        write = _Typed(os.fspath(path), overrides, asked, folder)
        raise OtherSettingsError(error.found, folder, write, error.force) from error


class _Typed:
    """The command line of these options with one more setting, for messages."""

    def __init__(self, path: str, overrides: Sequence[str], asked: Asked, folder: Path) -> None:
        self.path, self.asked = path, asked
        kept = [item for item in overrides if item.partition("=")[0] != "train.out"]
        self.overrides = [*kept, f"train.out={folder}"]

    def __call__(self, name: str, value: str) -> str:
        words = ["molequi", "train", self.path, *self.asked.words()]
        words += [item for item in self.overrides if item.partition("=")[0] != f"train.{name}"]
        return shlex.join([*words, f"train.{name}={value}"])
