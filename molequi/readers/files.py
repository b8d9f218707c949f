"""Functions that readers of files share: lists of paths, errors with the path, selections of frames."""

import codecs
import difflib
import glob
import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np

from molequi.data.sources import Source
from molequi.datasets import shipped_like
from molequi.errors import DataError, MolequiError
from molequi.util.files import file_sha256

Paths = str | Path | Sequence[str | Path]
Index = str | int | slice


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Convert errors of the system and of decoders about an unreadable file to a DataError with its path."""
    try:
        yield
    except MolequiError:
        raise
    except UnicodeDecodeError as error:
        if path.suffix.lower() in (".xyz", ".extxyz"):
            raise DataError(
                f"{path}: not an extxyz file, its bytes are not text ({error.reason} at byte {error.start})"
            ) from error
        raise DataError(
            f"{path}: its bytes are not text in UTF-8 or UTF-16 ({error.reason} at byte {error.start}); save "
            "it as UTF-8. If it is a text of Windows: iconv -f WINDOWS-1252 -t UTF-8 "
            f"'{path}' > new{path.suffix}"
        ) from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(
            f"{path}: damaged or truncated gzip file ({error}); copy or download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_file(path: Path) -> None:
    """Raise DataError if the file does not exist (the message has the most similar name), or is a folder."""
    if path.is_dir():
        raise DataError(
            f"{path}: is a folder; wanted a file, a list of files or a pattern such as '{path}/*.xyz'"
        )
    if not path.exists():
        folder = path.parent
        like = shipped_like(path)
        if not folder.is_dir():
            raise DataError(f"{path}: no such file, and no folder {folder}{like}")
        near = difflib.get_close_matches(path.name, sorted(p.name for p in folder.iterdir()), n=1)
        raise DataError(f"{path}: no such file" + (like or (f"; did you mean {near[0]!r}?" if near else "")))
    _check_kind(path)


# Files that another library reads into a table.
_SPREADSHEETS = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "read_excel"),
    ".parquet": "read_parquet",
    ".feather": "read_feather",
}


def _check_kind(path: Path) -> None:
    """Raise DataError for spreadsheets, with the command that makes a table of them."""
    reader = _SPREADSHEETS.get(path.suffix.lower())
    if reader:
        code = f"import pandas; pandas.{reader}('{path}').to_csv('{path.with_suffix('.csv')}', index=False)"
        raise DataError(
            f"{path}: a table that molequi does not read ({path.suffix}); save it as CSV:\n"
            f'  python -c "{code}"\n'
            f"or in Python: mq.read_smiles(pandas.{reader}('{path}'), …)"
        )


# The longer mark of two that begin alike comes first.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_text(path: Path, newline: str | None = None) -> IO[str]:
    """Open a text file for reading, also a compressed one (.gz); a byte-order mark is dropped.

    The text is in UTF-8, or what the byte-order mark says, such as UTF-16, which is also known without one.

    The csv module needs ``newline=""``; otherwise all line ends become that of Unix.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        first = file.read(4)
    encoding = next((name for mark, name in _MARKS.items() if first.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and len(first) > 1 and not all(first[:2]) and any(first[:2]):
        encoding = "utf-16-be" if not first[0] else "utf-16-le"  # without a mark; no text has a zero byte
    return cast(IO[str], opened(path, "rt", encoding=encoding, newline=newline))


def expand_paths(path: Paths) -> list[Path]:
    """The files of a path, a list of paths, or a pattern such as ``data/*.xyz``; all of them exist."""
    items = [path] if isinstance(path, (str, Path)) else list(path)
    files: list[Path] = []
    for item in items:
        text = str(item)
        if not Path(text).exists() and glob.has_magic(text):
            matches = sorted(glob.glob(text, recursive=True))
            if not matches:
                raise DataError(f"{text}: no file matches this pattern")
            files += map(Path, matches)
        else:
            files.append(Path(text))
    if not files:
        raise DataError("an empty list of files; wanted at least one")
    for file in files:
        check_file(file)
    return files


def source_of(file: Path, frames: int) -> Source:
    """The record that a file with so many structures was read."""
    with readable(file):
        return Source(str(file), frames, file_sha256(file))


def select(index: Index, total: int, where: str | Path) -> range:
    """Numbers of the frames that an index in ASE's manner selects: ``":100"``, ``"::10"``, 0."""
    if isinstance(index, str):
        try:
            words = [int(w) if w.strip() else None for w in index.split(":")]
        except ValueError:
            words = []
        if not 1 <= len(words) <= 3 or words == [None]:
            raise DataError(f"index {index!r}; wanted a number or start:stop:step such as ':100' or '::10'")
        if len(words) > 1:
            index = slice(*words)
        else:
            index = words[0] or 0
    if isinstance(index, (int, np.integer)):
        if not -total <= index < total:
            raise DataError(f"{where}: no frame {index}; the file has {total}, numbered from 0")
        return range(int(index) % total, int(index) % total + 1)
    chosen = range(total)[index]
    if not len(chosen):
        raise DataError(f"{where}: index {index} selects none of its {total} frames")
    return chosen


def is_number(word: str) -> bool:
    """Whether a word of a file is a number.

    Parameters
    ----------
    word : str
        The word.

    Examples
    --------
    >>> is_number("1e-3"), is_number("chair")
    (True, False)
    """
    try:
        float(word)
    except ValueError:
        return False
    return True
