"""A wheel of the package in an environment of its own: `python tests/wheel.py FOLDER` makes one, and prints its Python.

The environment has the dependencies of the one that runs this, and nothing of the repository, so that it shows what users of a wheel have.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = (
    "molequi",
    "data",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    ".constraints.txt",
)


def build(folder: Path) -> Path:
    """Build a wheel from a copy of what it is made of, since setuptools writes beside its sources."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in PARTS:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    _run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        source,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(folder: Path) -> Path:
    """A new environment with the wheel; returns its Python. ``molequi`` is beside it."""
    wheel = build(folder)
    home = folder / "environment"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # Plain paths at the end of the search: packages are found there, and an editable molequi is not.
    places = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("\n".join(places) + "\n")
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    return python


def _run(*words: object) -> None:
    done = subprocess.run([*map(str, words), "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    print(install(Path(sys.argv[1])))
