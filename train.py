"""Train a model as a YAML file, or a recipe of the package, says:

python train.py run.yaml train.lr=1e-3
python train.py demo
"""

import sys

from molequi.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
