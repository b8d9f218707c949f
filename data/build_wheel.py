"""Puts the shipped data into the wheel. setuptools reads this file when it builds, see ``pyproject.toml``."""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

DATA = Path(__file__).resolve().parent


class BuildWithData(build_py):
    """Copies the files of ``data/SHA256SUMS`` to ``molequi/shipped``. An editable install reads ``data/``."""

    def _files(self) -> dict[str, str]:
        """Target in the wheel and source of each file."""
        lines = (DATA / "SHA256SUMS").read_text("utf-8").splitlines()
        names = [*(line.split()[1] for line in lines), "README.md", "SHA256SUMS"]
        return {str(Path(self.build_lib, "molequi", "shipped", name)): f"data/{name}" for name in names}

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for target, source in self._files().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else [*self._files()])

    def get_source_files(self) -> list[str]:
        """What the sdist has: the data with their scripts, and the tested version of torch."""
        scripts = [f"data/{path.name}" for path in sorted(DATA.glob("*.py"))]
        return [*super().get_source_files(), *self._files().values(), *scripts, ".constraints.txt"]
