"""Published models by name: from the wheel of an installed package, or from the cache."""

import importlib.metadata
import os
import tempfile
from pathlib import Path

import torch

from molequi.checkpoint import load, save
from molequi.errors import CheckpointError, ConfigError, did_you_mean
from molequi.foreign.conversion import convert
from molequi.foreign.published import PUBLISHED, Published
from molequi.model import Model
from molequi.util.cache_folder import cache_folder
from molequi.util.files import file_sha256
from molequi.util.run_log import log
from molequi.util.signature import check_keywords

FOUNDATIONS = tuple(PUBLISHED)


@check_keywords()
def foundation(
    name: str,
    *,
    level: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Model:
    """A published model by name.

    Its weights are read from the wheel of the package that brings them, which has to be installed, but is
    never imported; ``pip install --no-deps PACKAGE`` is enough. They are converted once (see `convert`), and
    kept in the cache.

    Parameters
    ----------
    name : str
        "7net-0", "7net-0-22may2024", "7net-l3i5", "7net-mf-0" or "so3lr".
    level : str, optional
        Level of theory, for a model with several: "PBE" or "R2SCAN" of "7net-mf-0".
    device : {"auto", "cpu", "cuda", "cuda:1"}
        Device of the model.
    dtype : torch.dtype or str, optional
        Its precision, "float32" or "float64"; by default float32, as it was published.

    Returns
    -------
    Model
        The model. ``model.metadata["origin"]`` says what to cite, its licence and its level of theory.

    Raises
    ------
    ConfigError
        If there is no such name or level.
    CheckpointError
        If neither the package nor a converted file is there; the message says what to install.

    Examples
    --------
    >>> model = foundation("7net-0")  # doctest: +SKIP
    >>> atoms.calc = mq.Calculator(model)  # doctest: +SKIP
    """
    found = load(foundation_file(name, level), device=device, dtype=dtype)
    assert isinstance(found, Model)
    return found


def foundation_file(name: str, level: str | None = None) -> Path:
    """The file of a published model in the cache, which is made if it is not there.

    Parameters
    ----------
    name, level
        As in `foundation`.

    Raises
    ------
    ConfigError, CheckpointError
        As in `foundation`.
    """
    one = PUBLISHED.get(name.lower())
    if one is None:
        raise ConfigError(
            f"foundation: {name!r} is unknown{did_you_mean(name.lower(), PUBLISHED)}; there are "
            f"{', '.join(PUBLISHED)}. A file of your own is read by mq.convert"
        )
    if (one.levels and level not in one.levels) or (not one.levels and level is not None):
        wanted = f"one of {', '.join(one.levels)}" if one.levels else "none, since it has only one"
        raise ConfigError(
            f"foundation: level={level!r} of {name}; wanted {wanted}"
            + (f" (in commands and run files {name}@{one.levels[0]})" if one.levels else "")
        )
    end = "" if level is None else f"-{level.lower()}"
    kept = cache_folder() / "foundation" / f"{one.name}{end}-{one.sha256[:12]}.safetensors"
    if not kept.is_file():
        file = wheel_file(one)
        log(f"{one.name}: converting {file.name} of {one.package} once; it is kept in {kept.parent}")
        model = convert(file, level=level)
        _keep(model, kept)
    return kept


def wheel_file(one: Published) -> Path:
    """The file of published weights in an installed package, which is not imported.

    Parameters
    ----------
    one : Published
        The weights.

    Raises
    ------
    CheckpointError
        If the package is not installed, or its version has other weights.
    """
    try:
        path = Path(str(importlib.metadata.distribution(one.package).locate_file(one.file)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        found = "is not installed" if path is None else f"is installed without {one.file}"
        raise CheckpointError(
            f"{one.name}: its weights are part of the package {one.package}, which {found}; write\n"
            f"  pip install --no-deps {one.package}\nNothing of it is run: only this file is read"
        )
    digest = file_sha256(path)
    if digest != one.sha256:
        raise CheckpointError(
            f"{one.name}: {path.name} of the installed {one.package} has other weights (SHA-256 "
            f"{digest[:12]}…; wanted {one.sha256[:12]}…); convert it under a name of your own:\n"
            f"  molequi convert {path} OUT"
        )
    return path


def _keep(model: Model, path: Path) -> None:
    """Write a model into the cache; another process may do the same at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = save(model, Path(folder) / path.name)
        os.replace(written, path)
