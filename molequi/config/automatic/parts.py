"""Parts of the data that an .npz file names itself."""

from pathlib import Path
from typing import Any

from molequi.readers.npz import opened

_NAMES = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}


def parts_of_npz(path: str) -> tuple[dict[str, dict[str, Any]], str, int] | None:
    """The parts that are arrays of whole numbers, such as ``train`` and ``test``.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    (dict, str, int) or None
        Options of each part by its name ("" for the training set, which also gives the validation set if the
        file names none), a note, and the number of structures for training. None without ``train``.
    """
    with opened(Path(path)) as arrays:
        found: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for part, names in _NAMES.items():
            for name in names:
                if name in arrays and arrays.header(name)[1] in "iu" and len(arrays.header(name)[0]) == 1:
                    found[part], sizes[part] = name, arrays.header(name)[0][0]
    if "train" not in found or len(found) < 2:
        return None
    options: dict[str, dict[str, Any]] = {"": {"part": found["train"]}}
    count, text = (
        sizes["train"],
        "the parts that the file names: " + ", ".join(f"{part} {size}" for part, size in sizes.items()),
    )
    if "valid" not in found:
        options[""]["split"] = {"train": 0.9, "valid": 0.1}
        count, text = int(0.9 * count), text + "; a tenth of train is for validation"
    options |= {part: {"part": found[part]} for part in ("valid", "test") if part in found}
    return options, text, count
