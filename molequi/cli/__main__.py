"""``python -m molequi.cli`` is ``molequi``."""

import sys

from molequi.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
