"""Source: which file a Dataset was read from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A file that was read.

    Parameters
    ----------
    file : str
        Path of the file as the caller wrote it.
    frames : int
        Number of structures in the whole file, whether or not all were read.
    sha256 : str
        SHA-256 of the content, 64 hexadecimal digits.
    """

    file: str
    frames: int
    sha256: str
