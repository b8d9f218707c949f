"""Flow matching as a term of a training: new noise in every step, and self-conditioning."""

from dataclasses import dataclass

import torch

from molequi.errors import ConfigError
from molequi.generative.flow import VELOCITY, Flow, check_alike, estimate_of, inputs_of, times_of
from molequi.generative.pairs import connected
from molequi.generative.paths import draw, ends_of
from molequi.graph import Graph
from molequi.hooks import Batch, Hook, Plan, Run
from molequi.model import Model
from molequi.util.options import Options


@dataclass(frozen=True)
class FlowMatching(Options, Hook):
    """Draws new points on the paths of `molequi.generative.paths` in every step of a training.

    The loss is that of flow matching (Lipman et al. 2022, arXiv 2210.02747): the mean square error of the
    velocity, and the cross-entropy of the hidden elements; their weights are those of ``loss``. Noise and
    structures are coupled by optimal transport, see `molequi.generative.coupling.couple`. If the paths have
    self-conditioning, the network first predicts the end of the path in half of the steps and then reads
    this estimate, as it does while sampling.

    Parameters
    ----------
    coupling : bool
        Couple noise and structures by optimal transport.

    Raises
    ------
    ConfigError
        In a training, if the model does not predict the velocity, if the data are no paths,
        or if those of a part are of another flow.

    Examples
    --------
    >>> import molequi as mq
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> data = mq.generative.paths([water] * 8, "molecules")
    >>> inputs = mq.Inputs(node_features=3, node_vectors=1)
    >>> backbone = mq.EGNN(elements=data.elements, cutoff=None, inputs=inputs, channels=8, layers=1)
    >>> model = mq.Model(backbone, [mq.heads.Velocity(), data.quantities["flow_element"]])
    >>> result = mq.fit(model, data[:6], data[6:], epochs=1, terms=[FlowMatching()],
    ...                 logging={"progress": False})
    >>> sorted(result.model.metadata["reading"]["flow"])
    ['elements', 'end', 'scale', 'self_conditioning', 'sizes', 'task']
    """

    coupling: bool = True

    def check(self, model: Model, plan: Plan, where: str) -> None:
        if VELOCITY not in model.quantities:
            raise ConfigError(
                f"{where}: the model predicts {', '.join(model.quantities)}; flow matching trains the "
                "velocity: predict [Velocity()] of molequi.heads (in YAML {Velocity: flow_velocity})"
            )

    def start(self, run: Run) -> Hook:
        flow = Flow.of(run.parts["train"].reading, "FlowMatching: the training data")
        for name, data in run.parts.items():
            check_alike(flow, Flow.of(data.reading, f"FlowMatching: the {name} data"), f"the {name} data")
        return self

    def transform(self, run: Run, batch: Batch) -> Graph | None:
        """New points on the paths of a batch.

        Parameters
        ----------
        run : Run
            The training.
        batch : Batch
            The batch of the step.
        """
        graph = batch.graph
        if graph is None:
            return None
        flow = Flow.of(run.parts["train"].reading)
        seed = (run.seed * 1_000_003 + batch.number) * 1_009 + run.share[0]
        generator = torch.Generator().manual_seed(seed)
        device = graph.pos.device
        ends = ends_of(flow, graph.to("cpu"))
        new = draw(flow, ends, generator, coupled=self.coupling)
        new = connected(new, run.model).to(device)
        if not flow.self_conditioning or float(torch.rand((), generator=generator)) < 0.5:
            return new
        out = run.model(new, create_graph=False)  # the estimate is an input: no gradient flows through it
        start = None if ends.start is None else ends.start.to(device)
        return inputs_of(flow, new, times_of(new), start=start, estimate=estimate_of(flow, new, out))
