"""Lines of text files whose places in the file are known."""

import codecs
import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from molequi.errors import DataError

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


class Lines:
    """The lines of a binary file as text, with the place and the digest of what was read.

    Line ends of Windows become those of Unix, except in tables, where a cell may hold them.

    Parameters
    ----------
    file : binary file
        The open file.
    path : Path
        Its path, for messages.
    table : bool
        Whether it is a table.
    first : bool
        Whether its first line is the first one of the file.
    content : digest, optional
        All bytes go into it.
    keep : bool
        Whether the bytes are kept in `kept`.
    """

    def __init__(
        self,
        file: IO[bytes],
        path: Path,
        *,
        table: bool,
        first: bool = True,
        content: Any = None,
        keep: bool = False,
    ) -> None:
        self.file, self.path, self.table, self.first = file, path, table, first
        self.offset = self.number = 0
        self.ends = True  # whether the last line does
        self.digest = hashlib.sha256()
        self.content = content  # a digest of all lines, whatever is done with the other one
        self.kept: list[bytes] | None = [] if keep else None

    def __iter__(self) -> Iterator[str]:
        while line := self.readline():
            yield line

    def readline(self) -> str:
        """The next line; empty at the end."""
        raw = self.file.readline()
        if self.first and self.offset == 0:
            if raw.startswith(_WIDE):
                raise DataError(
                    f"{self.path}: its text is in UTF-16 or UTF-32; wanted UTF-8:\n"
                    f"  iconv -f UTF-16 -t UTF-8 '{self.path}' > new{self.path.suffix}"
                )
            text = raw.decode("utf-8-sig")
        else:
            text = raw.decode()
        self.offset += len(raw)
        self.number += bool(raw)
        self.ends = raw.endswith(b"\n") if raw else self.ends
        self.digest.update(raw)
        if self.content is not None:
            self.content.update(raw)
        if self.kept is not None:
            self.kept.append(raw)
        return text if self.table or not text.endswith("\r\n") else text[:-2] + "\n"


def open_bytes(path: Path) -> IO[bytes]:
    """A file, or the content of a .gz file.

    Parameters
    ----------
    path : Path
        The file.
    """
    return cast(IO[bytes], gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb"))
