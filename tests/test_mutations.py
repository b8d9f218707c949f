"""The lines that `mutations.py` breaks are there to be broken: a list of old lines would end at the first of them."""

import pytest

from .mutations import MUTATIONS, ROOT


@pytest.mark.parametrize(("file", "line", "broken", "tests"), MUTATIONS, ids=lambda value: None)
def test_line_and_tests_exist(file, line, broken, tests):
    assert line in (ROOT / file).read_text(encoding="utf-8") and line != broken
    assert all((ROOT / path).exists() for path in tests.split())
