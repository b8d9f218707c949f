"""The benchmark of Hessian products says which rows are missing."""

import json

import pytest

from ..benchmarks import hessians


def test_epochs_of_the_same_time_need_the_rows_of_both(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    monkeypatch.setattr(hessians, "OUT", rows)
    with pytest.raises(
        SystemExit, match="no row of plain and products with seed 0, 10 epochs and 2 directions"
    ):
        hessians.longer(0, 10, 2, 1.0)
    row = {"seed": 0, "epochs": 10}
    plain = row | {"variant": "plain", "seconds": 2.0, "directions": 0}
    several = [row | {"variant": "products", "seconds": 9.0 * k, "directions": k} for k in (1, 2, 3)]
    rows.write_text("".join(json.dumps(one) + "\n" for one in (plain, several[0])))
    with pytest.raises(SystemExit, match="no row of products with seed 0"):
        hessians.longer(0, 10, 2, 1.0)
    rows.write_text("".join(json.dumps(one) + "\n" for one in (plain, *several)))
    assert hessians.longer(0, 10, 2, 0.5) == 45  # 10 epochs, 18 s for 2 s, twice as many structures
