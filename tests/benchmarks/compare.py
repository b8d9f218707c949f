"""What equivariance gains and costs on the shipped data, and whether the recommendation holds for other seeds.

    nice -n 19 python tests/benchmarks/compare.py --minutes 2

Each of ethanol (300 K, with 600 K as other data), molecules and shapes is compared twice, with seeds 0 and 1 and with
seeds 2 and 3. Printed are the tables as Markdown, the recommendations, and whether they agree: the same network, or one
that the other pair of seeds calls tied with its best. An interrupted run goes on; finished trainings are not run again.
"""

import argparse
from pathlib import Path

import molequi as mq
from molequi.config.candidates import NETWORKS
from molequi.inference.comparisons import Comparison

PAIRS = ((0, 1), (2, 3))


def cases() -> dict[str, dict]:
    """The data of each comparison, and what differs."""
    other = mq.shipped("ethanol_600K.xyz")
    return {
        "ethanol": {"data": mq.shipped("ethanol_300K.xyz"), "other": other},
        "molecules": {"data": "property"},
        "shapes": {"data": mq.shipped("shapes.npz")},
    }


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def agree(first: Comparison, second: Comparison) -> str:
    one, two = first.ranking(), second.ranking()
    same = one.chosen == two.chosen
    tied = one.chosen in two.tied and two.chosen in one.tied
    word = "the same network" if same else "tied networks" if tied else "different networks"
    return f"{word}: {one.chosen} of {', '.join(one.tied)}; {two.chosen} of {', '.join(two.tied)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="processor minutes of each training")
    parser.add_argument("--only", nargs="+", choices=list(cases()), default=list(cases()))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.3, 1.0, 3.0])
    parser.add_argument("--out", type=Path, default=Path("build/compare"))
    options = parser.parse_args()
    for name in options.only:
        found = [
            mq.compare(
                **cases()[name],
                networks=options.networks,
                minutes=options.minutes,
                rates=options.rates,
                seeds=seeds,
                out=options.out / f"{name}-{seeds[0]}",
            )
            for seeds in PAIRS
        ]
        for one, seeds in zip(found, PAIRS):
            print(f"\n## {name}, seeds {seeds[0]} and {seeds[1]}, {options.minutes:g} processor minutes\n")
            print(markdown(*one.table()), markdown(*one.table_of_seconds()), sep="\n\n")
            print("", *(f"- {line}" for line in one.words()), sep="\n")
        print(f"\n{name}: {agree(*found)}")


if __name__ == "__main__":
    main()
