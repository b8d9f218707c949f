"""HTML for notebooks: escaped, well formed, readable in light and dark themes; and every result has some."""

import importlib
import inspect
import pkgutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.util.html import (
    FAILS,
    HOLDS,
    UNKNOWN,
    as_html,
    html_details,
    html_facts,
    html_heading,
    html_table,
    html_text,
    shorten,
    some,
)

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """The tags and the text of HTML; fails if a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.cells, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "br":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_everything_is_escaped_once():
    found = "".join(
        [
            html_heading(EVIL, EVIL),
            html_text(EVIL),
            html_table([EVIL, "b"], [[EVIL, EVIL]], [HOLDS]),
            html_facts({EVIL: EVIL, "empty": ""}),
            html_details(EVIL, html_text(EVIL)),
            as_html(EVIL),
        ]
    )
    page = Page(found)
    assert "script" not in page.tags and "<script" not in found
    assert "".join(page.words).count(EVIL) == 11  # as written, not escaped twice
    assert "empty" not in found


def test_columns_are_aligned_and_long_texts_are_cut():
    table = html_table(["a", "b"], [["1", "2"]], left=(1,))
    assert table.count("text-align:right") == 2 and table.count("text-align:left") == 2
    assert html_table(["a", "b"], [["1", "2"]], [FAILS], left=()).count(f"text-align:left;color:{FAILS}") == 1
    assert html_facts({}) == ""
    assert some(["a", "b"], 2) == "a, b" and some(list("abc"), 1) == "a and 2 more"
    assert shorten("abc", 3) == "abc" and shorten("abcd", 3) == "ab…"


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("background", ["#ffffff", "#111111", "#1e1e1e"])  # JupyterLab, VS Code
@pytest.mark.parametrize("colour", [HOLDS, FAILS, UNKNOWN])
def test_verdicts_are_readable_in_light_and_dark_themes(colour, background):
    low, high = sorted([luminance(colour), luminance(background)])
    assert (high + 0.05) / (low + 0.05) > 3.9


def test_names_from_files_are_escaped_in_a_data_set():
    graph = mq.Graph.single([[0.0, 0, 0]], ["H"], targets={"energy": torch.tensor([1.0])})
    data = mq.Dataset(
        [graph] * 3, info={EVIL: ["a", "b", "a"]}, unused={EVIL: 3}, found={"energy": f"from {EVIL!r}"}
    )
    page = Page(data._repr_html_())
    assert "script" not in page.tags
    assert f"{EVIL} (2 values)" in page.cells and f"{EVIL} (3)" in page.cells
    assert ["energy", "3/3", "1 to 1", "eV", f"from {EVIL!r}"] == page.cells[5:10]


def test_a_large_data_set_is_short():
    names = [f"class {k}" for k in range(500)]
    quantity = mq.Quantity("kind", classes=names)
    graphs = [mq.Graph.single([[0.0, 0, 0]], targets={"kind": torch.tensor([float(k)])}) for k in range(500)]
    info = {f"column {k}": ["x"] * 500 for k in range(300)}
    data = mq.Dataset(graphs, quantities={"kind": quantity}, info=info, unused=dict.fromkeys(info, 500))
    assert len(Page(data._repr_html_()).cells) < 20 and len(data._repr_html_()) < 4000
    assert "and 288 more" in data._repr_html_()
    assert "no labels" in mq.Dataset([mq.Graph.single([[0.0, 0, 0]])])._repr_html_()


def test_a_graph_says_what_it_is():
    water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"], charge=1)
    assert repr(water) == "Graph(H2O, 3 nodes)"
    crystal = mq.Graph.single([[0.0, 0, 0]], ["C"], cell=3 * np.eye(3), pbc=True)
    assert repr(mq.connect(crystal, 3.1)) == "Graph(C, 1 nodes, periodic, 6 edges up to 3.1 Å)"
    cloud = mq.Graph.single(np.random.default_rng(0).normal(size=(5, 2)), targets={"energy": torch.ones(1)})
    assert repr(mq.connect(cloud, None, k=2)).startswith("Graph(5 nodes, 2 dimensions, ")
    assert repr(cloud).endswith("; targets energy)")
    both = mq.collate([water, water])
    assert repr(both) == "Graph(2 graphs, 6 nodes)"
    cells = Page(water._repr_html_()).cells
    assert cells[10:15] == ["pos", "node", "3 × 3", "-0.24 to 0.96", "Å"]
    assert cells[15:20] == ["charge", "graph", "1", "1", "e"]
    rows = Page(mq.connect(cloud, None)._repr_html_()).cells
    assert rows[rows.index("pos") + 4] == ""  # the unit of a cloud is not known
    assert rows[rows.index("edge_index") :][:5] == ["edge_index", "edge", "2 × 20", "", ""]
    assert rows[-5:] == ["energy", "target", "1", "1", "eV"]


@pytest.mark.parametrize(
    "quantity, words, formula",
    [
        ("energy", "scalar of the graph, extensive", ""),
        ("forces", "vector of each node", "-∂energy/∂positions"),
        ("stress", "symmetric tensor of the graph", "∂energy/∂strain per volume"),
        (mq.Quantity("m", rank=1, pseudo=True, per="node"), "pseudovector of each node", ""),
        (mq.Quantity("w", rank=2, symmetry="ij=-ji"), "antisymmetric tensor of the graph", ""),
        (mq.Quantity("d", rank=2), "tensor of the graph", ""),
        (mq.Quantity("b", rank=3), "tensor of rank 3 of the graph", ""),
        (mq.Quantity("c", rank=1, point=True), "position of the graph", ""),
        (mq.Quantity("k", classes=["x", EVIL]), "one of 2 classes of the graph", ""),
        (
            mq.Quantity("h", rank=1, gradient_of="dipole", wrt="efield", factor=0.5),
            "vector of the graph",
            "0.5 ∂dipole/∂efield",
        ),
    ],
)
def test_a_quantity_in_words(quantity, words, formula):
    quantity = mq.quantities.quantity(quantity)
    assert quantity.words == words and quantity.formula == formula
    page = Page(quantity._repr_html_())
    assert "script" not in page.tags and words in page.cells
    assert (formula in page.cells) == bool(formula)


def results() -> list[type]:
    """Classes of the package that print themselves."""
    found = []
    for module in pkgutil.walk_packages(mq.__path__, "molequi."):
        if not module.name.endswith("__main__"):
            members = vars(importlib.import_module(module.name)).values()
            found += [m for m in members if inspect.isclass(m) and m.__module__ == module.name]
    return [kind for kind in found if "__str__" in vars(kind)]


def test_every_result_that_prints_itself_has_html_and_a_short_repr():
    plain = {
        "Group",
        "Rejected",
        "Flag",
        "PredictedTable",
        "ModelSummary",
        "Average",
        "Estimate",
        "Finding",
    }  # a sentence, or no result
    kinds = [kind for kind in results() if kind.__name__ not in plain]
    assert len(kinds) >= 16
    for kind in kinds:
        assert hasattr(kind, "_repr_html_"), kind
        assert kind.__name__ == "Errors" or kind.__repr__ is kind.__str__, kind
