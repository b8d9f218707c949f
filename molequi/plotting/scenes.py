"""Structures with colours and arrows, and their picture."""

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib
import numpy as np
from ase import Atoms
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Patch

from molequi.plotting.drawing import Arrows, direction, draw_structure, name_elements
from molequi.plotting.figure import BLUE, RED, Figure

ARROW_COLOURS = (BLUE, RED, "#2e8b57", "#8a5fb0")
_PANELS = 3
_NAMED_CLASSES = 20  # in a caption


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Structures, numbers and arrows to be drawn.

    Parameters
    ----------
    frames : tuple of ase.Atoms
        The structures that are shown.
    index : tuple of int
        Their numbers among all that were given.
    total : int
        How many were given.
    scalars : mapping of str to array, shape (frames,)
        A number or a text of each structure.
    node_scalars : mapping of str to tuple of array, shape (N,)
        A number of each atom, for each frame.
    vectors : mapping of str to tuple of array, shape (N, 3) or (1, 3)
        Vectors of the atoms, or of the whole structure, for each frame.
    units : mapping of str to str
        Unit of each name.
    classes : mapping of str to tuple of str
        Names of the classes that the numbers of a name stand for.
    arrows : tuple of str
        Vectors that are shown.
    color : str or None
        Number by which atoms are coloured; None for the colours of elements.
    scale : mapping of str to float
        Length in Å of an arrow of one unit.
    """

    frames: tuple[Atoms, ...]
    index: tuple[int, ...]
    total: int
    scalars: Mapping[str, np.ndarray]
    node_scalars: Mapping[str, tuple[np.ndarray, ...]]
    vectors: Mapping[str, tuple[np.ndarray, ...]]
    units: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    arrows: tuple[str, ...]
    color: str | None
    scale: Mapping[str, float]

    def label(self, name: str) -> str:
        """A name with its unit.

        Parameters
        ----------
        name : str
            Name of a number or of a vector.
        """
        unit = self.units.get(name, "")
        return f"{name} ({unit})" if unit else name

    @property
    def caption(self) -> str:
        """What is shown: how many structures, which arrows at which scale, which colours."""
        text = self._count() + "".join(f"; arrows: {self._scale(name)}" for name in self.arrows)
        if self.color is None:
            return text
        names = self.classes.get(self.color, ())[:_NAMED_CLASSES]
        numbers = ", ".join(f"{k} {name}" for k, name in enumerate(names))
        return f"{text}; colors: {self.label(self.color)}{f' ({numbers})' if numbers else ''}"

    @property
    def title(self) -> str:
        """A part of the caption for small places: the scale of the arrows if there are any."""
        return self._scale(self.arrows[0]) if self.arrows else self._count().partition(",")[0]

    def _count(self) -> str:
        count = len(self.frames)
        what = "structure" if any(a.numbers.any() for a in self.frames) else "cloud"
        if count < self.total:
            return f"{count} of {self.total} {what}s, evenly spaced"
        return f"{count} {what}{'s' * (count != 1)}"

    def _scale(self, name: str) -> str:
        number = f"{1 / self.scale[name]:.3g} {self.units.get(name, '')}".strip()
        return f"{name}, 1 Å is {number}"

    def arrow(self, name: str, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Starts and vectors of arrows in Å; vectors that are not known have length zero.

        Parameters
        ----------
        name : str
            Name of the vectors.
        frame : int
            Number of the frame.

        Returns
        -------
        (array, array), both of shape (n, 3)
        """
        vectors = np.nan_to_num(self.vectors[name][frame] * self.scale[name])
        positions = self.frames[frame].positions
        return (positions.mean(0, keepdims=True) if len(vectors) == 1 else positions), vectors


def draw_scene(scene: Scene, *, size: float = 4.0) -> Figure:
    """A picture of the first, the middle and the last structure of a scene.

    Parameters
    ----------
    scene : Scene
        What to draw.
    size : float
        Width and height of a panel in inches.

    Returns
    -------
    Figure
    """
    count = len(scene.frames)
    shown = sorted({round(k) for k in np.linspace(0, count - 1, min(count, _PANELS))})
    figure = Figure(figsize=(size * len(shown), size + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    shades = _shades(figure, scene, list(axes))
    for axis, k in zip(axes, shown):
        arrows = [
            Arrows(*scene.arrow(name, k), ARROW_COLOURS[n % len(ARROW_COLOURS)])
            for n, name in enumerate(scene.arrows)
        ]
        draw_structure(
            axis, scene.frames[k], direction(20, -60), size, None if shades is None else shades[k], arrows
        )
        if count > 1:
            axis.set_title(f"structure {scene.index[k]}", fontsize=9)
    if shades is None:
        name_elements(figure, np.concatenate([scene.frames[k].numbers for k in shown]))
    figure.suptitle(scene.caption, fontsize=9)
    return figure


def _shades(figure: Figure, scene: Scene, axes: list) -> list[np.ndarray] | None:
    """Colours of the atoms of each frame, with a colour bar or a legend; None for those of elements."""
    if scene.color is None:
        return None
    values, classes = scene.node_scalars[scene.color], scene.classes.get(scene.color)
    if classes:
        palette = class_colours(len(classes))
        handles = [Patch(color=palette(k), label=name) for k, name in enumerate(classes)]
        figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
        return [palette(v.astype(int))[:, :3] for v in values]
    every = np.concatenate(values)
    mapping = ScalarMappable(Normalize(float(every.min()), float(every.max())), "viridis")
    figure.colorbar(mapping, ax=axes, shrink=0.7, label=scene.label(scene.color))
    return [np.asarray(mapping.to_rgba(v))[:, :3] for v in values]


def class_colours(count: int) -> Colormap:
    """Colours of classes.

    Parameters
    ----------
    count : int
        Number of classes; beyond 20 the colours repeat.
    """
    return matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
