"""What a report says, and in which forms."""

import json
import math

import pytest

from molequi.audit.report import Report, Row, Tolerances, measured, skipped
from molequi.errors import ModelError


def report(*rows):
    return Report(
        rows=rows,
        model="Model(EGNN)",
        group="O(n)",
        structures=2,
        given=5,
        draws=8,
        seed=0,
        version="0",
        date="2026-01-01",
    )


GOOD = measured(
    "rotation", "energy", [(1e-15, 0, 0), (3e-15, 1, 4), (2e-15, 1, 5)], 1e-9, float32=[(2e-6, 0, 0)]
)
BROKEN = measured(
    "reflection", "forces", [(1e-2, 0, 0), (0.5, 1, 3)], 1e-9, element="improper", float32=[(0.5, 1, 3)]
)
NOISY = measured("rotation", "forces", [(1e-8, 0, 1)], 1e-9, float32=[(0.3, 0, 1)])


def test_a_row_keeps_median_largest_and_where():
    assert (GOOD.median, GOOD.maximum, GOOD.worst, GOOD.verdict) == (2e-15, 3e-15, (1, 4), "pass")
    assert BROKEN.verdict == "fail"


def test_an_error_at_the_tolerance_passes_and_exact_means_zero():
    assert measured("a", "b", [(1e-9, 0, 0)], 1e-9).verdict == "pass"
    assert measured("a", "b", [(0.0, 0, 0)], 0.0).verdict == "pass"
    assert measured("a", "b", [(1e-300, 0, 0)], 0.0).verdict == "fail"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_fails(bad):
    row = measured("a", "b", [(0.0, 0, 0), (bad, 1, 0)], 1e-9)
    assert row.verdict == "fail" and row.maximum == math.inf and "not finite" in row.explanation
    assert json.loads(report(row).to_json())["rows"][0]["maximum"] is None


def test_float32_tells_round_off_from_a_real_break():
    assert (
        BROKEN.ratio == 1
        and "no round-off" in BROKEN.explanation
        and "structure 1, draw 3" in BROKEN.explanation
    )
    assert NOISY.ratio == pytest.approx(3e7) and "round-off" in NOISY.explanation


def test_verdict_in_words():
    good, bad = report(GOOD, skipped("lattice", "", "no periodic structure")), report(GOOD, BROKEN)
    assert good.passed and good.summary == "passed: all 1 checks"
    assert not bad.passed and bad.summary == "FAILED: 1 of 2 checks: reflection of forces"
    assert good.raise_if_failed() is good
    with pytest.raises(ModelError, match=r"(?s)Model\(EGNN\) failed.*reflection +forces"):
        bad.raise_if_failed()


@pytest.mark.parametrize(
    "rows",
    [
        [skipped("lattice", "", "no periodic structure")],
        [
            skipped("not zero", "energy", "constant for structures so small"),
            measured("features", "0e", [(0.0, 0, 0)], 1e-9),
        ],
    ],
    ids=["no rows", "features alone"],
)
def test_a_report_that_measured_nothing_does_not_pass(rows):
    empty = report(*rows)
    assert not empty.passed and empty.summary.startswith("FAILED: nothing that the model predicts")
    with pytest.raises(ModelError, match="nothing that the model predicts could be measured"):
        empty.raise_if_failed()


def test_the_table_is_aligned():
    title, head, *lines, _summary = str(report(GOOD, BROKEN)).splitlines()
    assert "2 of 5 structures" in title and "declared O(n)" in title
    assert all(line[head.index("verdict") :].startswith(("pass", "fail")) for line in lines)


def test_html_is_escaped():
    page = report(Row(check="a<b", quantity="q", verdict="pass"))._repr_html_()
    assert "a&lt;b" in page and "a<b" not in page


def test_json():
    both = report(GOOD, NOISY, BROKEN)
    whole = json.loads(both.to_json())
    assert [r["verdict"] for r in whole["rows"]] == ["pass", "fail", "fail"]
    assert whole["tolerance"]["symmetry"] == Tolerances().symmetry
