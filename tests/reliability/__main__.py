"""`python -m tests.reliability [--quick] [NAME ...]`: one table of figures, and build/reliability.json."""

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

from molequi.util.tables import json_ready, text_table

from .figures import FIGURES, QUICK, Length, Row, as_record
from .fuzz import ROOT


def shown(value: float | str) -> str:
    """A cell."""
    return value if isinstance(value, str) else f"{value:.2g}"


def main() -> int:
    """Measure, print the table, write the file; the status is 1 if a figure is not reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"figures: {', '.join(FIGURES)}; by default all")
    parser.add_argument("--quick", action="store_true", help="a few minutes in place of an hour")
    given = parser.parse_args()
    unknown = set(given.names) - set(FIGURES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such figure; known: {', '.join(FIGURES)}")
    length = QUICK if given.quick else Length()
    rows: list[Row] = []
    for name in given.names or FIGURES:
        begun = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = FIGURES[name](length)
        command = f"python -m tests.reliability {name}{' --quick' if given.quick else ''}"
        rows += [replace(row, command=command) for row in found]
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    cells = [
        (
            r.quantity,
            shown(r.found),
            shown(r.wanted),
            shown(r.found32),
            shown(r.wanted32),
            "yes" if r.good else "NO",
            r.command,
        )
        for r in rows
    ]
    print(
        "\n".join(
            text_table(
                ("figure", "float64", "wanted", "float32", "wanted", "reached", "command"), cells, left=(0, 6)
            )
        )
    )
    target = ROOT / "build" / "reliability.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(json_ready([as_record(r) for r in rows]), indent=1), "utf-8")
    print(f"{target.relative_to(ROOT)}: {len(rows)} figures, {sum(not r.good for r in rows)} not reached")
    return int(not all(r.good for r in rows))


if __name__ == "__main__":
    sys.exit(main())
