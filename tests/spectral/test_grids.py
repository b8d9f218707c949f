"""Functions on the sphere, their spectra and filters."""

import pytest
import torch

from molequi.errors import ConfigError
from molequi.features import Features
from molequi.ops import irreps as ir
from molequi.spectral import SphereGrid, feature_spectrum, low_pass, power, resample
from molequi.symmetry.groups import random_orthogonal

KINDS = ["gauss-legendre", "driscoll-healy"]


def random_components(l_max: int, rows: int = 2) -> torch.Tensor:
    return torch.randn(
        rows, (l_max + 1) ** 2, dtype=torch.float64, generator=torch.Generator().manual_seed(l_max)
    )


def wigner(l_max: int, rotation: torch.Tensor) -> torch.Tensor:
    return torch.block_diag(*[ir.wigner(ir.natural(l), rotation) for l in range(l_max + 1)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l_max", [0, 1, 7, 40, 128])
def test_to_the_grid_and_back(l_max, kind):
    grid, c = SphereGrid(l_max, kind=kind), random_components(l_max)
    assert (grid.components(grid.values(c)) - c).abs().max() < 1e-12
    assert float(grid.weights.sum()) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_harmonics(kind):
    """The harmonics of the package, which are those of e3nn and of its Wigner matrices."""
    grid, c = SphereGrid(11, kind=kind), random_components(11, rows=1)
    harmonics = torch.cat(ir.spherical_harmonics(11, grid.points.reshape(-1, 3)), dim=1)
    assert (harmonics @ c[0] - grid.values(c)[0].flatten()).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_products_need_a_finer_grid(kind):
    """A square of degree 2 l_max: exact from `degree` on, equivariant then, and aliased below (control)."""
    rotation = random_orthogonal(3, generator=torch.Generator().manual_seed(1))
    c, d = random_components(4), wigner(4, rotation)

    def error(degree: int) -> float:
        grid = SphereGrid(4, degree=degree, kind=kind)
        square, turned = (grid.components(grid.values(x).square()) for x in (c, c @ d.T))
        return float((turned - square @ d.T).abs().max())

    assert error(8) < 1e-12
    assert error(4) > 1e-3


def test_power_is_parseval_and_invariant():
    c, grid = random_components(6), SphereGrid(6, degree=6)
    mean_square = (grid.weights * grid.values(c).square()).sum((1, 2))
    assert torch.allclose(power(c).sum(1), mean_square, rtol=1e-12)
    turned = c @ wigner(6, random_orthogonal(3, generator=torch.Generator().manual_seed(2))).T
    assert torch.allclose(power(turned), power(c), rtol=1e-12)
    assert (turned - c).abs().max() > 0.1


def test_filters():
    c = random_components(5)
    low = low_pass(c, l_max=2)
    assert power(low)[:, 3:].abs().max() == 0 and torch.equal(power(low)[:, :3], power(c)[:, :3])
    assert torch.equal(resample(resample(c, 2), 5), low)
    assert torch.equal(SphereGrid(5).values(resample(c, 5)), SphereGrid(5).values(c))
    up = SphereGrid(9)
    assert (up.components(SphereGrid(9).values(resample(c, 9)))[:, :36] - c).abs().max() < 1e-12


def test_gaussian_filter_is_the_heat_kernel():
    """Two widths in a row are as wide as √(a² + b²), and the mean is kept."""
    c = random_components(6)
    twice = low_pass(low_pass(c, angle=0.3), angle=0.4)
    assert torch.allclose(twice, low_pass(c, angle=0.5), rtol=1e-12)
    assert torch.equal(twice[:, 0], c[:, 0]) and (twice - c).abs().max() > 0.1


def test_features():
    blocks = {"0e": torch.ones(2, 4, 1), "1o": torch.ones(2, 3, 3), "1e": torch.ones(2, 3, 3)}
    features = Features(blocks=blocks, coordination=torch.ones(2))
    assert feature_spectrum(features).tolist() == [[4.0, 18.0]] * 2
    assert feature_spectrum(low_pass(features, l_max=0)).tolist() == [[4.0, 0.0]] * 2
    assert list(resample(features, 0).blocks) == ["0e"]
    assert resample(features, 2).blocks["2e"].shape == (2, 3, 5)


def test_errors():
    with pytest.raises(ConfigError, match=r"0 <= l_max <= degree"):
        SphereGrid(3, degree=2)
    with pytest.raises(ConfigError, match="gauss-legendre"):
        SphereGrid(3, kind="healpix")
    with pytest.raises(ConfigError, match=r"length 5; wanted \(l_max \+ 1\)²"):
        power(torch.zeros(5))
    with pytest.raises(ConfigError, match="numbers from 0 on"):
        low_pass(torch.zeros(4), angle=-1.0)
    with pytest.raises(ConfigError, match="a degree from 0 on"):
        resample(torch.zeros(4), -1)


@pytest.mark.parametrize("degree", [4.5, "a", True, 1])
def test_degrees_that_there_are_not(degree):
    with pytest.raises(ConfigError, match=r"SphereGrid: found l_max=2, degree=.*wanted whole numbers"):
        SphereGrid(2, degree=degree)


def test_shapes_that_do_not_fit_a_grid():
    grid = SphereGrid(2, degree=4)  # 4 polar angles × 7
    for wrong in (torch.zeros(4), torch.zeros(2, 10), torch.tensor(0.0), torch.zeros(9, dtype=torch.int64)):
        with pytest.raises(ConfigError, match=r"SphereGrid.values: found .*; wanted .*\(…, 9\)"):
            grid.values(wrong)
    for wrong in (SphereGrid(2).weights, torch.zeros(7), torch.zeros(7, 4)):
        with pytest.raises(ConfigError, match=r"SphereGrid.components: found .*; wanted .*\(…, 4, 7\)"):
            grid.components(wrong)
    assert grid.components(grid.values(torch.zeros(3, 2, 9))).shape == (3, 2, 9)
