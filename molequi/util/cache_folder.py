"""The folder in which molequi keeps what it can make again, and who may write to it."""

import os
import stat
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder of the setting ``MOLEQUI_CACHE``, or the usual folder of this platform.

    Returns
    -------
    Path
        On Linux ``$XDG_CACHE_HOME/molequi`` or ``~/.cache/molequi``, on macOS ``~/Library/Caches/molequi``.
        It need not exist.

    Examples
    --------
    >>> import os
    >>> os.environ["MOLEQUI_CACHE"] = "/scratch/molequi"
    >>> str(cache_folder())
    '/scratch/molequi'
    >>> del os.environ["MOLEQUI_CACHE"]
    """
    given = os.environ.get("MOLEQUI_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "molequi"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "molequi"


def not_private(path: Path) -> str:
    """Why others could change what is in a folder; empty if they cannot.

    The folder itself has to belong to this user. It and all folders above must not be writable by others,
    except for folders such as ``/tmp``, in which everyone can change only their own files.

    Parameters
    ----------
    path : Path
        A folder that exists.

    Returns
    -------
    str
        The reason, with the command that mends it.
    """
    path = path.resolve()
    user = os.geteuid()
    for folder in (path, *path.parents):
        found = folder.stat()
        if found.st_uid not in ({user} if folder == path else {user, 0}):
            return f"{folder} belongs to another user; set MOLEQUI_CACHE to a folder of your own"
        shared = bool(found.st_mode & stat.S_ISVTX) and folder != path
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared:
            return f"others can write to {folder}; type: chmod go-w {folder}"
    return ""
