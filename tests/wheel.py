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
PARTS = ("molequi", "data", "pyproject.toml", "README.md", "LICENSE", ".constraints.txt")


def copy(folder: Path) -> Path:
    """A copy of what the package is made of, since setuptools writes beside its sources."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in PARTS:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    return source


def build(source: Path, folder: Path) -> Path:
    """Build a wheel of a folder or of an sdist."""
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


def build_sdist(source: Path, folder: Path) -> Path:
    """Build an sdist of a folder, as `python -m build --sdist` does."""
    return _backend("build_sdist", source, folder)


def build_editable(source: Path, folder: Path) -> Path:
    """Build what `pip install --editable` installs."""
    return _backend("build_editable", source, folder)


def _backend(function: str, source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    code = f"import sys; from setuptools import build_meta; build_meta.{function}(sys.argv[1])"
    _run(sys.executable, "-c", code, folder, cwd=source)
    (built,) = folder.iterdir()
    return built


def environment(wheel: Path, home: Path) -> Path:
    """A new environment with the wheel; returns its Python. ``molequi`` is beside it."""
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # Plain paths at the end of the search: packages are found there, and an editable molequi is not.
    places = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("\n".join(places) + "\n")
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    return python


def install(folder: Path) -> Path:
    """A new environment with a wheel of the repository; returns its Python."""
    return environment(build(copy(folder), folder), folder / "environment")


def _run(*words: object, cwd: Path | None = None) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    print(install(Path(sys.argv[1])))
