"""Counts of `tests/structure.py` against what is allowed: nothing."""

import inspect

import pytest

from . import structure


@pytest.fixture(scope="module")
def counts() -> dict[str, list[str]]:
    return structure.measure()


@pytest.mark.parametrize(
    "what",
    [
        "circles of imports",
        "private names across files",
        "long bodies",
        "long argument lists",
        "without types",
        "without documentation",
        "long files",
    ],
)
def test_nothing_is_counted(counts, what):
    assert len(counts[what]) == 0, "\n".join(counts[what])


def test_each_count_finds_what_it_looks_for(tmp_path):
    """A package with one fault of each kind."""
    root = tmp_path / "molequi"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text("from molequi import b\nx = b._hidden\n")
    long = "\n".join(f"    y = {k}" for k in range(70))
    many = ", ".join(f"a{k}: int" for k in range(16))
    (root / "b.py").write_text(
        f"def f() -> None:\n    from molequi.a import x\n{long}\n\ndef g({many}) -> None:\n    pass\n\ndef h(a):\n    pass\n"
        + "# \n" * 500
    )
    found = structure.modules(root)
    assert len(structure.circles(found)) == 1
    assert any("_hidden" in place for place in structure.private_imports(found))
    assert [place.split()[1] for place in structure.long_bodies(found)] == ["f:"]
    assert [place.split()[1] for place in structure.long_signatures(found)] == ["g:"]
    assert [place.split()[1] for place in structure.untyped(found)] == ["h:"]
    assert len(structure.long_files(found)) == 1


def test_parameters_that_are_not_described_are_found():
    def f(a: int, b: int) -> int:
        """Sum.

        Parameters
        ----------
        a : int
            One.
        """
        return a + b

    assert structure._undescribed(f, inspect.cleandoc(f.__doc__)) == ["b"]
