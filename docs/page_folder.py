"""Runs first in the kernel of each page: a new folder with the shipped data, as a user has after cloning."""

import os
import tempfile
import warnings
from pathlib import Path

_repository = Path(os.environ["MOLEQUI_REPOSITORY"])
_folder = Path(tempfile.mkdtemp(prefix="molequi-page-"))
for _name in ("data", "train.py", "tests"):
    (_folder / _name).symlink_to(_repository / _name)
# The pages about own classes include these files.
for _path in (_repository / "tests/extensions").glob("own_*.py"):
    (_folder / _path.name).symlink_to(_path)
os.chdir(_folder)

# PyTorch Geometric asks for progress bars of notebooks, which pages do not need.
warnings.filterwarnings("ignore", message="IProgress not found")
