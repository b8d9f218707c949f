"""The lowest version of each dependency that `pyproject.toml` allows.

`python tests/lower_bounds.py` prints them as constraints of pip, and `make check-lower-bounds` runs the quick
tests with them. The exception is torch: PyPI has no old build for processors alone, so the version of
`.constraints.txt` is used.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("points", "pyg")


def bounds() -> dict[str, str]:
    """Lowest version of each dependency, and of those of the extras `points` and `pyg`.

    Raises ValueError for a dependency with anything but one lower bound.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for name in EXTRAS for line in project["optional-dependencies"][name]),
    ]
    out = {}
    for line in lines:
        requirement = Requirement(line)
        found = [(part.operator, part.version) for part in requirement.specifier]
        if len(found) != 1 or found[0][0] != ">=":
            raise ValueError(f"pyproject.toml: {line!r} has no single lower bound such as 'numpy>=1.26'")
        out[requirement.name] = found[0][1]
    return out


def constraints() -> str:
    """Constraints of pip with the lowest versions, but torch as it is tested."""
    tested = (ROOT / ".constraints.txt").read_text("utf-8").split()
    pinned = {Requirement(line).name for line in tested}
    return "\n".join([*tested, *(f"{name}=={low}" for name, low in bounds().items() if name not in pinned)])


if __name__ == "__main__":
    print(constraints())
