"""The program of a worker process: blocks come in as lines of JSON, notes go out as lines of JSON."""

import json
import os
import sys
from pathlib import Path

from molequi.errors import MolequiError


def main(words: list[str]) -> int:
    """Do the blocks that come from standard input until it ends.

    Parameters
    ----------
    words : list of str
        The folder of the screening, the device (empty: chosen here), the number of threads.

    Returns
    -------
    int
        Exit status.
    """
    import torch

    from molequi.screening.work import BlockWork, from_line

    folder, device, threads = words
    # What libraries print must not get between the notes.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    try:
        work = BlockWork(Path(folder), device or None, workers=int(threads))
    except (MolequiError, OSError) as error:
        kind = type(error).__name__ if isinstance(error, MolequiError) else "OSError"
        print(json.dumps({"error": [kind, str(error)]}), file=answers, flush=True)
        return 2
    try:
        print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
        for line in sys.stdin.buffer:
            print(json.dumps(work.answer(from_line(line))), file=answers, flush=True)
    finally:
        work.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
