"""Lists beside the folders of classes, as ModelNet40 is shipped with: names of parts, classes and files."""

from pathlib import Path

from molequi.errors import DataError
from molequi.readers.files import is_number, readable
from molequi.readers.point_files import SUFFIXES, TEXT

_LINES = 20  # that are looked at
_SHARE = 0.5  # of these lines, with two numbers or more and no word, in a cloud


def is_list(file: Path) -> bool:
    """Whether a text beside the folders of classes holds names or sentences, not points.

    Parameters
    ----------
    file : Path
        The file. Only its first lines are looked at.
    """
    if file.suffix.lower() not in TEXT:
        return False
    with readable(file), open(file, encoding="utf-8", errors="replace") as text:
        lines = [line.replace(",", " ").replace(";", " ").split() for _, line in zip(range(_LINES), text)]
    lines = [words for words in lines if words]
    points = [words for words in lines if len(words) > 1 and all(map(is_number, words))]
    return len(points) < _SHARE * len(lines) or not lines


def members_of_list(file: Path, folder: Path) -> set[Path]:
    """The files of a part: those that a list names.

    Parameters
    ----------
    file : Path
        A file with a name in each line: ``airplane_0001``, ``airplane/airplane_0001.txt``, or both with the
        class before it.
    folder : Path
        The folder with a folder for each class.

    Raises
    ------
    DataError
        With the line, for a name of no file or of several files.
    """
    named: dict[str, list[Path]] = {}
    for path in folder.glob("*/*"):
        if path.suffix.lower() in SUFFIXES:
            for name in (
                path.stem,
                path.name,
                f"{path.parent.name}/{path.stem}",
                f"{path.parent.name}/{path.name}",
            ):
                named.setdefault(name, []).append(path)
    found = set()
    with readable(file):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        name = line.strip().removeprefix("./")
        paths = named.get(name, [])
        if name and len(paths) != 1:
            more = "no file has this name" if not paths else f"{len(paths)} files have this name"
            raise DataError(f"{file}, line {number}: {name!r}; {more} in the folders of {folder}")
        found.update(paths)
    if not found:
        raise DataError(f"{file}: an empty list; wanted a name of a cloud in each line")
    return found
