"""Pictures for notebooks and reports: ``plotting.parity(model, data).savefig("parity.png")``.

Each function returns a `matplotlib.figure.Figure` of its own, which a notebook shows as a picture. Functions
are imported on first use, with the packages whose results they draw.
"""

import importlib as _importlib
import typing as _typing

# The module of each function.
_MODULE_OF = {
    "analysis": "analyses",
    "audit": "symmetry",
    "calibration": "calibrations",
    "comparison": "comparisons",
    "layerwise_equivariance": "symmetry",
    "learning_curve": "learning_curves",
    "lie_errors": "symmetry",
    "molecule": "structures",
    "orbit_spectrum": "symmetry",
    "parity": "parities",
    "size_curve": "learning_sizes",
    "symmetry_curves": "symmetry",
    "symmetry_generators": "symmetry",
    "symmetry_test": "symmetry",
    "trajectory": "structures",
}

__all__ = [
    "analysis",
    "audit",
    "calibration",
    "comparison",
    "layerwise_equivariance",
    "learning_curve",
    "lie_errors",
    "molecule",
    "orbit_spectrum",
    "parity",
    "size_curve",
    "symmetry_curves",
    "symmetry_generators",
    "symmetry_test",
    "trajectory",
]

if _typing.TYPE_CHECKING:  # what editors and type checkers see
    from molequi.plotting.analyses import analysis
    from molequi.plotting.calibrations import calibration
    from molequi.plotting.comparisons import comparison
    from molequi.plotting.learning_curves import learning_curve
    from molequi.plotting.learning_sizes import size_curve
    from molequi.plotting.parities import parity
    from molequi.plotting.structures import molecule, trajectory
    from molequi.plotting.symmetry import (
        audit,
        layerwise_equivariance,
        lie_errors,
        orbit_spectrum,
        symmetry_curves,
        symmetry_generators,
        symmetry_test,
    )


def __getattr__(name: str) -> _typing.Any:
    if name not in _MODULE_OF:
        attributes = _importlib.import_module("molequi.util.attributes")
        raise attributes.no_attribute("module 'molequi.plotting'", name, _MODULE_OF, attributes.OF_PLOTTING)
    value = getattr(_importlib.import_module(f"molequi.plotting.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_MODULE_OF, *(name for name in globals() if name.startswith("__"))})
