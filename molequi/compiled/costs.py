"""What compilation costs and gains, as far as that is known before."""

from dataclasses import dataclass

from molequi.compiled.kept import kind_of, known_seconds, shelf_of
from molequi.graph import Graph
from molequi.model import Model
from molequi.regular_graphs import regular

LOADING = 2.0  # seconds, for a program that is on disk


@dataclass(frozen=True)
class _Measured:
    """Seconds of compilation for training and for evaluation, and plain over compiled time of a step."""

    training: float
    evaluation: float
    gain: float


# On two cores, float32, with the sizes of the recipes: docs/benchmarks/speed.md. Measured with g++ -O3 and
# `sympy.simplify`; compiling takes less time since then.
_MEASURED = {
    "GauntACE": _Measured(56.0, 19.0, 3.2),
    "NequIP": _Measured(62.0, 21.0, 2.2),
    "PaiNN": _Measured(48.0, 16.0, 2.3),
}
# Of other backbones: the usual seconds, and the smallest gain that was measured, that of MACE.
_OTHER = _Measured(60.0, 20.0, 1.7)


@dataclass(frozen=True)
class Cost:
    """What the compilation of a model costs and gains.

    Parameters
    ----------
    seconds : float
        Time for the functions of training and evaluation: what earlier compilations of this kind took on this
        machine, otherwise what they took where it was measured; a few seconds for those that are on disk.
    gain : float
        Time of a plain training step divided by that of a compiled one.
    """

    seconds: float
    gain: float

    def saved(self, seconds: float) -> float:
        """How much of the plain training time of `seconds` the compiled model saves.

        Parameters
        ----------
        seconds : float
            Time of the training by the plain model.

        Examples
        --------
        >>> Cost(seconds=70.0, gain=2.0).saved(120.0)
        60.0
        """
        return seconds * (1 - 1 / self.gain)

    @property
    def worthwhile(self) -> float:
        """Seconds of plain training from which compilation saves more than it costs.

        Examples
        --------
        >>> Cost(seconds=70.0, gain=2.0).worthwhile
        140.0
        """
        return self.seconds / (1 - 1 / self.gain)


def cost_of(model: Model, graph: Graph, degree: int) -> Cost:
    """What it costs to compile a model for training and evaluation.

    Parameters
    ----------
    model : Model
        The model.
    graph : Graph
        A connected batch of the training.
    degree : int
        Number of edges of each node, padding included.
    """
    measured = _MEASURED.get(type(model.backbone).__name__, _OTHER)
    total, padded = 0.0, regular(graph, nodes=1, degree=degree)
    for create_graph, otherwise in ((True, measured.training), (False, measured.evaluation)):
        shelf = shelf_of(model.train(create_graph), padded, create_graph)
        if shelf is not None and shelf.path.exists():
            total += LOADING
        else:
            total += known_seconds(kind_of(model, create_graph)) or otherwise
    return Cost(total, measured.gain)
