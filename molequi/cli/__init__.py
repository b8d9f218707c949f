"""The command line, ``molequi``: one file for each group of commands.

A command declares its arguments beside its code, see `molequi.cli.command.Command`. Modules that need PyTorch
are imported when a command runs, so that ``molequi --help`` is fast.
"""

from molequi.cli.program import main

__all__ = ["main"]
