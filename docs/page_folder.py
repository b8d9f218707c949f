"""Runs first in the kernel of each page: a new folder with the shipped data, as a user has after cloning."""

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from IPython import get_ipython

_repository = Path(os.environ["MOLEQUI_REPOSITORY"])
_folder = Path(tempfile.mkdtemp(prefix="molequi-page-"))
for _name in ("data", "train.py", "tests"):
    (_folder / _name).symlink_to(_repository / _name)
# The pages about own classes include these files.
for _path in (_repository / "tests/extensions").glob("own_*.py"):
    (_folder / _path.name).symlink_to(_path)
os.chdir(_folder)

# The same initial weights in each build: a page that fails does so for whoever changes it, not by chance.
torch.manual_seed(0)

# A page that warns would show a user the wrong way. (PyTorch Geometric asks for progress bars of notebooks.)
warnings.filterwarnings("error", category=UserWarning)
warnings.filterwarnings("ignore", message="IProgress not found")


def bash(line: str, cell: str) -> None:
    """The magic `%%bash`, with the output in one piece, and an error if any command fails."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", cell], capture_output=True, text=True)
    # Readers have their clone in another folder.
    print(done.stdout.replace(str(_repository), "~/molequi"), end="")
    print(done.stderr, end="", file=sys.stderr)
    done.check_returncode()


get_ipython().register_magic_function(bash, "cell")
