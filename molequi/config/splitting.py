"""The split of a run file: `Dataset.split`, and what a file can say beside it."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from molequi.data.dataset import Dataset
from molequi.data.splits import block_groups, choose, stratified
from molequi.errors import ConfigError, DataError, did_you_mean

BLOCKS = "blocks"


def split_options(
    *,
    split: Mapping[str, Annotated[int, Gt(0)] | Annotated[float, Gt(0), Le(1)] | Sequence[int]] | None = None,
    seed: Annotated[int, Ge(0)] = 0,
    by: str | None = None,
    stratify: str | None = None,
    labelled: bool = False,
) -> None:
    """The options that stand beside those of a reader.

    Parameters
    ----------
    split : mapping
        Size of each part, see `Dataset.split`.
    seed : int
        Seed of the random choice.
    by : str, optional
        A column: structures with the same value stay together, see `Dataset.split`. "blocks" without such a
        column are twenty blocks of successive structures.
    stratify : str, optional
        A column or a label of classes: each value has its share of every part. Not with `by`.
    labelled : bool
        Leave out structures without any label of what is predicted.
    """


def check_split(options: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for parts that do not exist, and for options that contradict each other.

    Parameters
    ----------
    options : mapping
        The options of a section that stand beside those of its reader.
    where : str
        The section, for messages.
    """
    for part in options.get("split") or {}:
        if part not in ("train", "valid", "test"):
            raise ConfigError(
                f"{where}.split.{part}: no such part{did_you_mean(str(part), ('train', 'valid', 'test'))}"
            )
    if options.get("by") is not None and options.get("stratify") is not None:
        raise ConfigError(
            f"{where}: by={options['by']} keeps structures together and stratify={options['stratify']} "
            "spreads them; give one of them"
        )
    for name in ("by", "stratify"):
        if options.get(name) is not None and not options.get("split"):
            raise ConfigError(f"{where}.{name}: has no effect without split")


def split_data(whole: Dataset, options: Mapping[str, Any], predicted: Sequence[str]) -> dict[str, Dataset]:
    """The parts of the data.

    Parameters
    ----------
    whole : Dataset
        All data of the first reader.
    options : mapping
        Options as of `split_options`.
    predicted : sequence of str
        What is predicted, for `labelled`.

    Returns
    -------
    dict of str to Dataset
        The parts by name; all data are "train" without a split.

    Raises
    ------
    DataError
        As `Dataset.split`; and if nothing is labelled, or there is no such column.
    """
    if options.get("labelled"):
        known = [k for k in range(len(whole)) if any(whole[[k]].labelled(name) for name in predicted)]
        if not known:
            raise DataError(f"none of the {len(whole)} structures has a label of {', '.join(predicted)}")
        whole = whole[known]
    split, seed, by = options.get("split"), options.get("seed", 0), options.get("by")
    if split is None:
        return {"train": whole}
    labels, sizes = list(split), list(split.values())
    stratify = options.get("stratify")
    chosen: Sequence[Sequence[int]]
    if stratify is not None:
        chosen = stratified(len(whole), sizes, labels, seed=seed, strata=_column(whole, stratify))
    elif by == BLOCKS and by not in whole.info:
        chosen = choose(len(whole), sizes, labels, seed=seed, groups=block_groups(len(whole)))
    else:
        return whole.split(split, seed=seed, by=by)
    return whole.split(dict(zip(labels, chosen)))


def _column(data: Dataset, name: str) -> Sequence[Hashable]:
    """A column of info, or the class of each structure."""
    if name in data.info:
        return data.info[name]
    q = data.quantities.get(name)
    if q is not None and q.classes and q.per == "graph":
        return [None if v != v else int(v) for v in data.values(name).tolist()]
    classes = [n for n, q in data.quantities.items() if q.classes and q.per == "graph"]
    raise DataError(
        f"stratify={name!r}: no such column of info or label of "
        f"classes{did_you_mean(name, [*classes, *data.info])}"
    )
