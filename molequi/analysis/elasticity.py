"""Elastic constants from second derivatives of a model, or from the stress of strained crystals."""

from dataclasses import dataclass

import numpy as np
from ase.stress import voigt_6_to_full_3x3_strain

from molequi.analysis.hessians import SecondDerivatives, chosen_method, strain_derivatives
from molequi.analysis.relaxed import GPA, AnyCalculator, Start, relaxed_ions, relaxed_start
from molequi.errors import ConfigError
from molequi.simulation.inputs import Structure
from molequi.util.html import html_table, html_text
from molequi.util.signature import check_keywords
from molequi.util.tables import text_table

_STRAIN = 0.005
_RIGID = 1e-8  # of the largest eigenvalue of the Hessian; below it a motion costs nothing
VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")


@dataclass(frozen=True)
class ElasticConstants:
    """Result of `elastic`; printed, the matrix and the moduli.

    Parameters
    ----------
    matrix : array, shape (6, 6)
        C in GPa, in Voigt's order xx, yy, zz, yz, xz, xy, for engineering shear strains.
    asymmetry : float
        Largest difference of C_ij and C_ji in GPa before they were averaged: a measure of the error.
    start : Start
        The structure that was strained.
    method : {"analytic", "finite-differences"}
        How they were computed.
    """

    matrix: np.ndarray
    asymmetry: float
    start: Start
    method: str = "finite-differences"

    @property
    def stable(self) -> bool:
        """Whether every small strain costs energy: all eigenvalues of C are above zero (Born)."""
        return bool(np.linalg.eigvalsh(self.matrix).min() > 0)

    @property
    def bulk_modulus(self) -> float:
        """Bulk modulus of a polycrystal in GPa, the mean of Voigt's and Reuss's (Hill, 1952)."""
        reuss = 1 / self._compliance[:3, :3].sum()
        return float((self.matrix[:3, :3].sum() / 9 + reuss) / 2)

    @property
    def shear_modulus(self) -> float:
        """Shear modulus of a polycrystal in GPa, the mean of Voigt's and Reuss's (Hill, 1952)."""
        c, s = self.matrix, self._compliance
        trace, rest = np.trace(c[:3, :3]), (c[:3, :3].sum() - np.trace(c[:3, :3])) / 2
        voigt = (trace - rest + 3 * np.trace(c[3:, 3:])) / 15
        trace, rest = np.trace(s[:3, :3]), (s[:3, :3].sum() - np.trace(s[:3, :3])) / 2
        reuss = 15 / (4 * (trace - rest) + 3 * np.trace(s[3:, 3:]))
        return float((voigt + reuss) / 2)

    @property
    def young_modulus(self) -> float:
        """Young's modulus of a polycrystal in GPa."""
        k, g = self.bulk_modulus, self.shear_modulus
        return 9 * k * g / (3 * k + g)

    @property
    def poisson_ratio(self) -> float:
        """Poisson's ratio of a polycrystal."""
        k, g = self.bulk_modulus, self.shear_modulus
        return (3 * k - 2 * g) / (2 * (3 * k + g))

    @property
    def _compliance(self) -> np.ndarray:
        return np.linalg.inv(self.matrix)

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The table "elastic": the matrix in GPa, one column for each strain."""
        return {"elastic": {f"C_{name}_GPa": self.matrix[:, k] for k, name in enumerate(VOIGT)}}

    def _rows(self) -> list[list[str]]:
        return [[name, *(f"{round(c, 1) + 0.0:.1f}" for c in row)] for name, row in zip(VOIGT, self.matrix)]

    def _notes(self) -> list[str]:
        lines = [
            f"bulk modulus {self.bulk_modulus:.1f}, shear modulus {self.shear_modulus:.1f}, Young's modulus "
            f"{self.young_modulus:.1f} GPa, Poisson's ratio {self.poisson_ratio:.3f} (Hill)"
        ]
        if not self.stable:
            lines.append("mechanically NOT stable: an eigenvalue of the matrix is not above zero")
        how = f"{self.method}; C_ij and C_ji differ by up to {self.asymmetry:.2g} GPa"
        return [*lines, f"{self.start}; {how}"]

    def __str__(self) -> str:
        return "\n".join([*text_table(["GPa", *VOIGT], self._rows()), *self._notes()])

    def _repr_html_(self) -> str:
        return html_table(["GPa", *VOIGT], self._rows()) + html_text("\n".join(self._notes()))

    __repr__ = __str__


@check_keywords()
def elastic(
    atoms: Structure,
    calculator: AnyCalculator,
    *,
    method: SecondDerivatives | None = None,
    strain: float | None = None,
    relax: bool = True,
    fmax: float = 0.001,
) -> ElasticConstants:
    """Elastic constants of a crystal, from second derivatives of a model or differences of the stress.

    The structure and its lattice are relaxed first. Finite differences relax the atoms in each of twelve
    strained cells. The analytic constants have the relaxation in closed form (Born and Huang, 1954), with the
    engineering strains ε and the displacements u:

        C = (∂²E/∂ε∂ε - ∂²E/∂ε∂u (∂²E/∂u∂u)⁺ ∂²E/∂u∂ε) / V.

    Parameters
    ----------
    atoms : ase.Atoms, str or Path
        A crystal, or a file that ASE reads.
    calculator : ASE calculator, Model, Ensemble, str or Path
        What computes energies, forces and stress, as in `molequi.md`.
    method : {"analytic", "finite-differences"}, optional
        By default "analytic" for a model, and differences for other calculators and if a strain is given.
    strain : float, > 0, optional
        Size of the strains for finite differences; 0.005 by default.
    relax : bool
        Relax the structure first; if not, the constants are those of frozen ions, and the force and pressure
        that are left are in the result.
    fmax : float
        Threshold of the relaxations in eV/Å.

    Returns
    -------
    ElasticConstants
        The matrix in GPa and the moduli of a polycrystal.

    Raises
    ------
    ConfigError
        For settings out of range, structures that are no crystals and models without an energy.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> elastic(bulk("Cu"), EMT()).matrix.round()[:2, :2].tolist()
    [[173.0, 115.0], [115.0, 173.0]]
    """
    if strain is not None and not (np.isfinite(strain) and 0 < strain < 0.1):
        raise ConfigError(f"strain={strain!r}: wanted a number between 0 and 0.1")
    start = relaxed_start(atoms, calculator, relax_first=relax, cell=True, fmax=fmax, what="elastic")
    chosen = chosen_method(start.atoms, method, strain=strain)
    if chosen == "analytic":
        matrix = _analytic(start, relax)
    else:
        matrix = _differences(start, _STRAIN if strain is None else strain, fmax if relax else None)
    asymmetry = float(np.abs(matrix - matrix.T).max())
    return ElasticConstants((matrix + matrix.T) / 2, asymmetry, start, chosen)


def _analytic(start: Start, relax: bool) -> np.ndarray:
    """The constants from the second derivatives of a model in GPa."""
    matrix = strain_derivatives(start.atoms)
    size = 3 * len(start.atoms)
    found = matrix[size:, size:]
    if relax:  # a translation of all atoms costs nothing; its eigenvalue is round-off
        found = (
            found
            - matrix[size:, :size]
            @ np.linalg.pinv(matrix[:size, :size], rcond=_RIGID, hermitian=True)
            @ matrix[:size, size:]
        )
    return np.asarray(found / start.atoms.cell.volume / GPA)


def _differences(start: Start, strain: float, fmax: float | None) -> np.ndarray:
    """Central differences of the stress in GPa, with relaxed ions if a threshold is given."""
    matrix = np.empty((6, 6))
    for k in range(6):
        stresses = []
        for sign in (1, -1):
            frame = start.atoms.copy()
            frame.calc = start.atoms.calc
            deformation = voigt_6_to_full_3x3_strain(sign * strain * np.eye(6)[k])  # 1 + ε
            frame.set_cell(frame.cell.array @ deformation, scale_atoms=True)
            frame = frame if fmax is None else relaxed_ions(frame, fmax)
            stresses.append(frame.get_stress())
        matrix[:, k] = (stresses[0] - stresses[1]) / (2 * strain) / GPA
    return matrix
