"""Augmentation: each structure of a step is seen in a random orientation, with its labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from molequi.approximate.transforms import RandomTransforms, group_with, random_transforms
from molequi.graph import Graph
from molequi.hooks import Batch, Hook, Plan, Run
from molequi.model import Model
from molequi.util.options import Options
from molequi.util.signature import check_keywords

Augmented = Literal["rotation", "reflection", "translation", "permutation"]


@check_keywords()
@dataclass(frozen=True)
class Augmentation(Hook, Options):
    """A term of a training that transforms each structure at random, anew in each step, labels included.

    A network without built-in symmetry learns the symmetry from such copies. The elements depend on the seed
    of the training and the number of the step alone, so a continued training draws the same ones. Validation
    data are not transformed.

    Parameters
    ----------
    symmetries : sequence of {"rotation", "reflection", "translation", "permutation"}
        What is drawn.
    group : str
        The group of rotations and reflections, a name of `molequi.symmetry.group`.
    shift : float, optional
        Standard deviation of each component of a translation in Å; by default the radius of gyration of the
        training structures.

    Examples
    --------
    >>> Augmentation().symmetries
    ('rotation',)
    """

    symmetries: Sequence[Augmented] = ("rotation",)
    group: str = "O(n)"
    shift: float | None = None

    def problem(self) -> str:
        """Nothing to draw, and a shift without translations."""
        if not self.symmetries:
            return "symmetries is empty; name what is drawn, such as symmetries=['rotation']"
        if self.shift is not None and "translation" not in self.symmetries:
            return f"shift={self.shift} is for translations; add 'translation' to symmetries, or leave it out"
        return ""

    def check(self, model: Model, plan: Plan, where: str) -> None:
        """Check that the group has these symmetries.

        Parameters
        ----------
        model : Model
            The model.
        plan : Plan
            Options of the training.
        where : str
            Beginning of error messages.

        Raises
        ------
        ConfigError
            If the group is unknown, or has no such elements.
        """
        group_with(self.group, 3, self.symmetries, where)

    def start(self, run: Run) -> "Augmenting":
        """The term with its source of random elements.

        Parameters
        ----------
        run : Run
            The training.
        """
        transforms = random_transforms(
            self.group, run.parts["train"], run.seed, self.shift, self.symmetries, "Augmentation"
        )
        return Augmenting(self, transforms)


class Augmenting(Hook):
    """The augmentation of one training.

    Parameters
    ----------
    term : Augmentation
        Its options.
    transforms : RandomTransforms
        The source of random elements.
    """

    name = Augmentation.name

    def __init__(self, term: Augmentation, transforms: RandomTransforms) -> None:
        self.term, self.transforms = term, transforms

    def record(self) -> dict[str, Any]:
        """All options."""
        return {"symmetries": list(self.term.symmetries), "group": self.term.group, "shift": self.term.shift}

    def transform(self, run: Run, batch: Batch) -> Graph:
        """The batch in random orientations, with labels that follow.

        Parameters
        ----------
        run : Run
            The training.
        batch : Batch
            The batch of the step.
        """
        graph = batch.graph
        assert graph is not None
        for symmetry in self.term.symmetries:
            key = ("augmentation", batch.number)
            elements = self.transforms(symmetry, batch.counts, key, run.share).to(graph.pos.device)
            graph = elements.graph(graph, run.model.quantities)
        return graph
