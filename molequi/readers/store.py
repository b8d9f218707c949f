"""Read a store of prepared structures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from molequi.data.dataset import Dataset
from molequi.data.heuristics import checked_allow
from molequi.errors import DataError, did_you_mean
from molequi.readers.files import select
from molequi.store.reading import open_store
from molequi.util.signature import check_keywords


@check_keywords()
def read_store(
    path: str | Path,
    *,
    index: str | int | slice = ":",
    quantities: Sequence[str] = (),
    keys: Mapping[str, None] | None = None,
    verify: bool = True,
    allow: str | Sequence[str] = (),
) -> Dataset:
    """Open structures that `prepare` stored, of any number.

    The structures stay on disk, and parts of files are read when they are used. So a data set that is larger
    than memory can be split, looked at and trained on; several processes share the same pages of memory.

    Parameters
    ----------
    path : str or Path
        The folder of the store.
    index : str, int or slice
        Structures in ASE's manner: ":", "::10", 0.
    quantities : sequence of str, optional
        The labels that are wanted; by default all.
    keys : mapping of str to None, optional
        Labels that are left out, ``{"stress": None}``.
    verify : bool
        Whether all files are compared with their digests, which takes about a second for a gigabyte.
    allow : str or sequence of str, optional
        Heuristics that are overruled, beside those of the store, see `molequi.data.heuristics`.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If it is no store, if it is damaged or not complete, or has no such label.

    Examples
    --------
    >>> import tempfile
    >>> import molequi as mq
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = mq.prepare(mq.shipped("ethanol_300K.xyz"), folder + "/ethanol")
    ...     data = mq.read_store(folder + "/ethanol")
    ...     print(len(data), data[3].num_nodes)
    400 9
    """
    data = open_store(path, verify=verify)
    left_out = {name for name, key in (keys or {}).items() if key is None}
    renamed = [name for name, key in (keys or {}).items() if key is not None]
    if renamed:
        raise DataError(
            f"{path}: keys={{{renamed[0]!r}: …}}: the labels of a store have the names of their quantities "
            f"({', '.join(data.quantities) or 'none'}); keys leaves labels out: {{'stress': None}}"
        )
    wanted = [
        str(getattr(q, "name", q)) for q in ([quantities] if isinstance(quantities, str) else quantities)
    ]
    for name in wanted:
        if name not in data.quantities:
            raise DataError(f"{path}: no label {name!r}{did_you_mean(name, data.quantities)}")
    names = [n for n in (wanted or data.quantities) if n not in left_out]
    data = data.with_quantities(names)
    data.allow = checked_allow([*data.allow, *([allow] if isinstance(allow, str) else allow)])
    return data if index == ":" else data[select(index, len(data), path)]
