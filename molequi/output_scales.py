"""The size that the outputs of a model usually have, by which it is judged whether they are zero."""

from collections.abc import Mapping
from typing import Any

from molequi.quantities import Quantity


def output_scale(model: object, name: str) -> float:
    """The scale by which a model multiplies an output, in the unit of the output.

    Labels have units, so that no number is small by itself: a dipole moment in C m is 1e-29. Gradients have
    the scale of what is differentiated, per Å.

    Parameters
    ----------
    model : Model, Ensemble or other object
        The model.
    name : str
        Name of the output.

    Returns
    -------
    float
        Above zero; 1 if it is not known.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H"], channels=4, layers=1), ["energy", "forces"])
    >>> model.heads["energy"].standardize(scale=0.5)
    >>> output_scale(model, "forces")
    0.5
    """
    inner: Any = getattr(model, "module", model)
    heads: Any = getattr(inner, "heads", None)
    quantities: Mapping[str, Quantity] = getattr(inner, "quantities", {})
    seen: set[str] = set()
    while hasattr(heads, "keys") and name not in heads and name in quantities and name not in seen:
        seen.add(name)
        name = quantities[name].gradient_of or name
    if not hasattr(heads, "keys") or name not in heads:
        return 1.0
    found = abs(float(getattr(heads[name], "scale", 1.0)))
    return found if found > 0 else 1.0
