"""Files of other packages become models: read without running them, compared, and kept with their origin."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molequi.audit.symmetry_reports import symmetry_report
from molequi.errors import CheckpointError, DataError, MolequiError
from molequi.foreign.archive import Archive
from molequi.foreign.mace import from_mace, is_mace
from molequi.foreign.nequip import from_nequip, is_nequip
from molequi.foreign.origin import Converted, Origin
from molequi.foreign.pickles import records
from molequi.foreign.published import BY_DIGEST
from molequi.foreign.sevennet import from_sevennet, is_sevennet
from molequi.foreign.so3lr import from_so3lr, is_so3lr
from molequi.graph import Graph
from molequi.model import Model
from molequi.neighbors import connect
from molequi.quantities import SYMBOLS
from molequi.util.devices import as_dtype
from molequi.util.files import file_sha256
from molequi.util.signature import check_keywords

_WRONG = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Family:
    """A kind of foreign file.

    Parameters
    ----------
    matches : callable
        Whether the content of an archive is of this kind.
    convert : callable
        Makes the model, from the path for messages, the content, and the level of theory or None.
    """

    matches: Callable[[Any], bool]
    convert: Callable[[str, Any, str | None], Converted]


FAMILIES: Mapping[str, Family] = {
    "SevenNet": Family(is_sevennet, from_sevennet),
    "SO3LR": Family(is_so3lr, from_so3lr),
    "MACE": Family(is_mace, from_mace),
    "NequIP": Family(is_nequip, from_nequip),
}


@check_keywords()
def convert(
    file: str | os.PathLike[str], *, level: str | None = None, dtype: torch.dtype | str = "float32"
) -> Model:
    """A model of another package as one of this package.

    The file is read without running anything that it names; the other package need not be installed. All of
    its tensors and options have to be understood: otherwise it is refused, and the message says what is not
    known. The symmetry of the model is measured, see `Model.symmetry_report`.

    Parameters
    ----------
    file : path-like
        A checkpoint of SevenNet (.pth), a model of SO3LR or MACE (.model), or a checkpoint (.ckpt) or
        package (.nequip.zip) of NequIP.
    level : str, optional
        Level of theory, for a file with several: a modal of SevenNet, a head of MACE.
    dtype : torch.dtype or str
        Precision of the weights, "float32" or "float64". They are multiplied by constants of the other
        package, so that float32 rounds them once more.

    Returns
    -------
    Model
        The model, which predicts energy, forces and stress, and for SO3LR partial charges and dipoles. Its
        ``metadata["origin"]`` says where it comes from. `mq.save` writes it into a file.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind, or has something that this version does not know.

    Examples
    --------
    >>> model = convert("checkpoint_sevennet_0.pth")  # doctest: +SKIP
    >>> mq.save(model, "7net-0.safetensors")  # doctest: +SKIP
    """
    path = Path(file)
    with Archive(path) as archive:
        value = archive.value()
    family = next((f for f in FAMILIES.values() if f.matches(value)), None)
    if family is None:
        raise CheckpointError(
            f"{path}: a file of torch with {_content(value)}, which is none of the kinds that this version "
            f"reads: {', '.join(FAMILIES)}"
        )
    try:
        made = family.convert(str(path), value, level)
    except MolequiError:
        raise
    except _WRONG as error:  # a type or a number that none of its options has
        raise CheckpointError(
            f"{path}: what it says about the model is none of the options of its package "
            f"({type(error).__name__}: {str(error)[:80]}); it is damaged or of another version"
        ) from error
    digest = file_sha256(path)
    origin = replace(made.origin, file=path.name, sha256=digest)
    known = BY_DIGEST.get(digest)
    if known is not None:
        origin = replace(origin, name=known.name, licence=known.licence, training=known.training)
    model = _in_precision(str(path), made.model, as_dtype(dtype)).eval()
    model.metadata = {
        "origin": {name: value for name, value in asdict(origin).items() if value},
        "trained_on": {"elements": [SYMBOLS[z] for z in model.elements]},
    }
    structures = _structures(model)
    _check_predictions(str(path), model, structures)
    report = symmetry_report(model, structures)
    model.metadata["symmetry_report"] = report.to_dict()
    return model


def origin_of(model: Model) -> Origin | None:
    """Where a converted model comes from; None for others.

    Parameters
    ----------
    model : Model
        A model.
    """
    found = getattr(model, "metadata", {}).get("origin")
    return None if found is None else Origin(**found)


def _in_precision(where: str, model: Model, dtype: torch.dtype) -> Model:
    """The model in another precision. Raises CheckpointError if its numbers are too large for it."""
    model = model.to(dtype)
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{where}: {name} has numbers beyond the range of {str(dtype).removeprefix('torch.')}; "
                "convert it with dtype='float64'"
            )
    return model


def _check_predictions(where: str, model: Model, structures: list[Graph]) -> None:
    """Raise CheckpointError if the model cannot be evaluated, or its predictions are no finite numbers."""
    for graph in structures:
        try:
            graph = connect(graph, model.cutoff)
        except DataError as error:
            raise CheckpointError(
                f"{where}: its cutoff of {model.cutoff} Å is too large to connect a crystal of four atoms "
                f"({str(error)[:80]}); wanted a distance in Å, such as 5"
            ) from error
        for name, value in model(graph).items():
            undefined = name == ("stress" if graph.cell is None else "dipole")
            if not undefined and not bool(torch.isfinite(value).all()):
                raise CheckpointError(
                    f"{where}: the model predicts {name} that is not finite; its weights or options are no "
                    "trained ones, or the file is damaged"
                )


def _content(value: Any) -> str:
    """What an archive holds, in a few words."""
    kinds = sorted({record.kind for record in records(value)})
    if kinds:
        return f"objects of {', '.join(kinds[:3])}"
    return (
        f"the keys {', '.join(map(str, list(value)[:5]))}"
        if isinstance(value, Mapping)
        else type(value).__name__
    )


def _structures(model: Model) -> list[Graph]:
    """Structures on which the symmetry is measured: a cluster and a crystal in a skewed cell."""
    random = np.random.default_rng(0)
    z = random.choice(model.elements, 6)
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * 2.2
    cluster = corners[:6] + random.uniform(-0.3, 0.3, (6, 3))
    cell = np.array([[4.3, 0.0, 0.0], [0.8, 4.1, 0.0], [-0.5, 0.9, 4.6]])
    crystal = corners[[0, 3, 5, 6]] + random.uniform(-0.2, 0.2, (4, 3))
    given = (("charge", 1), ("spin", 2))
    totals: dict[str, Any] = {name: value for name, value in given if model.backbone.reads(name)}
    return [
        Graph.single(cluster, z, **totals),
        Graph.single(crystal, z[:4], cell=cell, pbc=True, **totals),
    ]
