"""Hypothesis test of the data's symmetry: ``print(mq.symmetry_test("data.xyz"))``."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import torch

from molequi.data.dataset import Dataset
from molequi.data_symmetry.descriptors import choose_cutoff, compute_descriptors
from molequi.data_symmetry.groups import GROUPS, GroupSelection, select_groups
from molequi.data_symmetry.oracle import Oracle, oracle_errors
from molequi.data_symmetry.quantity_tests import MIN_STRUCTURES, SymmetryTester
from molequi.data_symmetry.report import HypothesisTest, SymmetryTestReport, Verdict
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.quantities import Quantity
from molequi.readers.load import load_dataset
from molequi.util.progress import ProgressBar
from molequi.util.signature import check_keywords

MAX_NODES = 36_000  # at most so many nodes are in memory


@check_keywords()
def symmetry_test(
    data: object,
    *,
    quantities: Sequence[str] | None = None,
    groups: Sequence[str] = GROUPS,
    axis: Sequence[float] | None = None,
    seed: int = 0,
    draws: int | None = None,
    alpha: float = 0.01,
    cutoff: float | None = None,
    limit: int = 5000,
    oracle: Oracle | None = None,
    progress: bool = True,
) -> SymmetryTestReport:
    """Test from data alone which symmetries labelled structures break, and say what to do.

    An equivariant ridge regression on fixed descriptors is cross-fitted. If the data are symmetric, the
    products of its residuals with descriptors (the scores) have no preferred direction in the lab frame. The
    norm of the summed scores is compared with `draws` data sets in which each structure, with its labels, is
    rotated at random. This randomization test is exact if orientations are uniform (Lehmann and Romano,
    Testing Statistical Hypotheses, chapter 17).

    Orientations are often not uniform. A symmetry is therefore called broken only if a second test also
    rejects it. In this test each structure is rotated to the orientation of a similar structure, so that the
    distribution of orientations stays as it is. It assumes that among similar structures the orientation does
    not depend on the shape. The orientation is defined in several ways, and p is the largest of all these
    tests. If orientations are not uniform, the report states the assumption. If they depend on the shape, for
    instance by a convention of the program that wrote the data, the test is inconclusive.

    Near-duplicates are rotated together, and so are consecutive frames that are correlated (within each
    ``trajectory`` if ``data.info`` has this column). With fewer than 30 independent structures the test is
    inconclusive. Correlated frames in random order are not recognized. The test of translations sees a linear
    dependence on the position, for scalars also a quadratic one.

    Parameters
    ----------
    data : Dataset, path, list of Graph, …
        Whatever `load_dataset` accepts, in three dimensions, with labels.
    quantities : sequence of str, optional
        Names of the quantities to test; all with labels by default.
    groups : sequence of str
        "O(3)", "SO(3)", "E(3)", "SE(3)", "T(3)" (translations), and subgroups: "O(2)", "SO(2)", "T", "Td",
        "Th", "O", "Oh", "I", "Ih". Subgroups are tested if rotations are broken, or if no group with all
        rotations is listed.
    axis : sequence of 3 floats, optional
        Axis of "O(2)" and "SO(2)". By default it is searched in the data, which makes the test conservative.
    seed : int
        Seed of all random numbers.
    draws : int, optional
        Number of random data sets. By default 999, or as many as a corrected p-value below alpha / 2 needs.
    alpha : float
        Significance level of each verdict. p-values are multiplied by the number of quantities, and those of
        reflections, which are tested after rotations, also by two (Bonferroni correction).
    cutoff : float, optional
        Cutoff of the descriptors in Å; chosen from the data by default.
    limit : int
        Largest number of structures in use, evenly spaced in the data.
    oracle : callable, optional
        Labels a list of Graphs and returns for each a mapping from names to values. With it, the symmetry
        error of the labelling function and the orbit variance are measured. The orbit variance is the mean
        squared error that no equivariant model can beat if all orientations are equally frequent.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    SymmetryTestReport
        ``print`` shows the table and the advice.

    Raises
    ------
    ConfigError
        For unknown groups, settings out of range, and fewer draws than a p-value below alpha needs.
    DataError
        For data without labels, with infinite labels, not in three dimensions, or with fewer than 30 labelled
        structures.

    Examples
    --------
    Forces that attract every atom to the origin depend on the position of the structure:

    >>> import torch, molequi as mq
    >>> positions = torch.randn(60, 4, 3).double() + 3 * torch.randn(60, 1, 3).double()
    >>> graphs = [mq.Graph.single(x, ["H"] * 4, targets={"forces": -x}) for x in positions]
    >>> mq.symmetry_test(graphs, groups=["T(3)"], progress=False).verdicts
    ('translational symmetry broken',)
    """
    from molequi import __version__

    selection = select_groups(groups, axis)
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha={alpha}: wanted a level between 0 and 1")
    if limit < MIN_STRUCTURES:
        raise ConfigError(f"limit={limit}: wanted at least {MIN_STRUCTURES} structures")
    given = load_dataset(data)
    names = _quantities(given, quantities)
    n_tests = 2 if selection.rotations and selection.reflections else 1
    draws = _number_of_draws(draws, alpha, len(names), n_tests)
    used = _used_structures(given, names, limit)
    generator = torch.Generator().manual_seed(seed)
    with ProgressBar("symmetry test", 3 + 4 * len(names), unit="test", show=progress, delay=3) as bar:
        descriptors = compute_descriptors(used, choose_cutoff(used) if cutoff is None else cutoff)
        tester = SymmetryTester(
            used,
            descriptors,
            selection,
            draws=draws,
            alpha=alpha,
            generator=generator,
            n_quantities=len(names),
        )
        bar.advance()
        tests, sizes, axes = _run(tester, [used.quantities[name] for name in names], bar.advance)
        errors = (
            tuple(oracle_errors(used, [used.quantities[n] for n in names], oracle, generator))
            if oracle
            else ()
        )
    return SymmetryTestReport(
        tests=tuple(tests),
        verdicts=tuple(verdicts(tests, selection)),
        effect_size=sizes,
        axis=axes,
        oracle=errors,
        n_structures=len(used),
        n_given=len(given),
        draws=draws,
        seed=seed,
        alpha=alpha,
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _run(
    tester: SymmetryTester, quantities: Sequence[Quantity], progress: Callable[[int], object]
) -> tuple[list[HypothesisTest], dict[str, float | None], dict[str, tuple[float, ...]]]:
    """All tests, the rows of stabilizers last; effect sizes and axes by name of the quantity."""
    tests = tester.orientation_tests()
    progress(1)
    sizes: dict[str, float | None] = {}
    axes: dict[str, tuple[float, ...]] = {}
    for q in quantities:
        found, sizes[q.name], axis = tester.quantity_tests(q, progress)
        tests += found
        axes |= {} if axis is None else {q.name: axis}
    progress(1)
    tests.sort(key=lambda test: test.name == "stabilizers")
    return tests, sizes, axes


def _number_of_draws(draws: int | None, alpha: float, quantities: int, n_tests: int) -> int:
    """The given number if a corrected p-value can be below alpha; by default enough for alpha / 2."""
    if draws is None:
        return max(999, math.ceil(2 * quantities * n_tests / alpha))
    if not isinstance(draws, int) or isinstance(draws, bool):
        raise ConfigError(f"draws={draws!r}: wanted a whole number, or None to choose it")
    if quantities / (1 + draws) >= alpha:
        raise ConfigError(
            f"draws={draws}: no p-value, times {quantities} for the quantities, can be below "
            f"alpha={alpha:g}; "
            f"wanted at least {math.floor(quantities / alpha)} draws, or None"
        )
    return draws


def _quantities(data: Dataset, wanted: Sequence[str] | None) -> list[str]:
    labelled = [n for n in data.quantities if data.labelled(n)]
    if not labelled:
        raise DataError(
            "no labels in these data; the test needs labelled structures"
            + (f"; not read: {', '.join(data.unused)}" if data.unused else "")
        )
    if isinstance(wanted, str) or (wanted is not None and not len(wanted)):
        raise ConfigError(f"quantities={wanted!r}: wanted a list of names from {', '.join(labelled)}")
    for name in wanted or ():
        if name not in labelled:
            raise DataError(f"quantity {name!r} has no labels in these data{did_you_mean(name, labelled)}")
    for name in wanted or labelled:
        for graph, origin in zip(data.graphs, data.origins):
            if bool(torch.isinf(graph.targets[name]).any()):
                raise DataError(
                    f"{origin}: {name} is infinite; wanted numbers, or NaN where a label is not known"
                )
    return list(wanted or labelled)


def _used_structures(data: Dataset, names: Sequence[str], limit: int) -> Dataset:
    """Structures with a label, evenly spaced: at most `limit`, with at most about MAX_NODES nodes."""
    if data.graphs[0].dim != 3:
        raise DataError(f"structures in {data.graphs[0].dim} dimensions; wanted three dimensions")
    kept = [k for k, g in enumerate(data) if any(not bool(torch.isnan(g.targets[n]).all()) for n in names)]
    most = min(limit, max(MIN_STRUCTURES, int(MAX_NODES / data.counts[kept].mean())), len(kept))
    if len(kept) < MIN_STRUCTURES:
        raise DataError(
            f"{len(kept)} structures with labels; wanted at least {MIN_STRUCTURES}, and hundreds to detect "
            "symmetry breaking of a few per cent"
        )
    chosen = data[[kept[(k * len(kept)) // most] for k in range(most)]]
    return Dataset(
        [g.without("edge") for g in chosen],
        quantities=chosen.quantities,
        info=chosen.info,
        origins=chosen.origins,
    )


def verdicts(tests: Sequence[HypothesisTest], groups: GroupSelection) -> list[Verdict]:
    """Overall verdicts from all tests."""
    orientations = groups.rotations or groups.subgroups
    of_labels = [
        t
        for t in tests
        if t.quantity
        and (t.name in ("SO(3)", "reflections") or t.is_subgroup if orientations else t.name == "T(3)")
    ]
    broken = {t.name for t in tests if t.broken}
    rotations = "SO(3)" in broken or (
        not any(t.name == "SO(3)" for t in tests) and any(t.broken and t.is_subgroup for t in tests)
    )
    out: list[Verdict] = []
    if rotations:
        out.append("rotational symmetry broken")
    if "reflections" in broken and not rotations:
        out.append("reflection symmetry broken")
    if "T(3)" in broken:
        out.append("translational symmetry broken")
    if "stabilizers" in broken and not rotations:
        out.append("spontaneous symmetry breaking")
    if not out and (all(t.p_value is None for t in of_labels) or any(t.inconclusive for t in of_labels)):
        out.append("inconclusive")
    if "orientations" in broken:
        out.append("anisotropic orientations")
    if "handedness" in broken:
        out.append("unequal handedness")
    return out or ["no symmetry breaking found"]
