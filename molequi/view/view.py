"""Show structures: a widget in a notebook, a page, or a picture."""

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from molequi.errors import ConfigError
from molequi.plotting.figure import Figure
from molequi.plotting.scenes import Scene, draw_scene
from molequi.util.files import write_file
from molequi.util.signature import check_keywords
from molequi.view.collect import scene_of
from molequi.view.page import dataset, page, require_chemiscope

_PICTURES = (".png", ".pdf", ".svg")
_said: list[str] = []  # what a notebook was told once


class View:
    """Structures to look at; a notebook shows them. `view` makes it.

    Parameters
    ----------
    scene : Scene
        What is shown.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    @cached_property
    def widget(self) -> Any:
        """The widget of chemiscope. Its ``settings`` can be read and set.

        Raises
        ------
        MissingPackageError
            If chemiscope is not installed.
        """
        require_chemiscope("an interactive view")
        import chemiscope

        # `chemiscope.show` takes structures; here the data set is the one that `save` writes.
        data = json.dumps(dataset(self.scene, wide=False))
        return chemiscope.show_input(io.StringIO(data), mode="structure")

    def picture(self) -> Figure:
        """A picture of the first, the middle and the last structure."""
        return draw_scene(self.scene)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a page or a picture.

        Parameters
        ----------
        path : str or Path
            Its ending says what is written: ``.html`` is an interactive page that needs neither network nor
            server; ``.json`` is the data set for https://chemiscope.org; ``.png``, ``.pdf`` and ``.svg`` are
            pictures of the first, the middle and the last structure.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ConfigError
            For another ending.
        MissingPackageError
            If a page or a data set is wanted and chemiscope is not installed.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind in (".html", ".json"):
            require_chemiscope(f"{path}: an interactive page")
            data = dataset(self.scene)
            write_file(path, page(data, self.scene.caption) if kind == ".html" else json.dumps(data))
        elif kind in _PICTURES:
            write_file(path, lambda part: self.picture().savefig(part, format=kind[1:]))
        else:
            raise ConfigError(
                f"view: {path}: wanted a name that ends in .html (interactive), .json, or for a picture "
                f"{', '.join(_PICTURES)}"
            )
        return path

    def __repr__(self) -> str:
        return f"View({self.scene.caption}); a notebook shows it, and .save('view.html') writes a page"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Any:
        """The widget, and a picture for where widgets are not shown."""
        image = base64.b64encode(self.picture()._repr_png_()).decode()
        found: dict[str, Any] = {"text/plain": repr(self), "image/png": image}
        if os.environ.get("MOLEQUI_VIEW") == "picture":
            return found
        if find_spec("chemiscope") is None:
            if not _said:
                _said.append("chemiscope")
                print("a picture; for interactive views: pip install 'molequi[view]'")
            return found
        bundle = self.widget._repr_mimebundle_()
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**(data or {}), **found}, metadata


@check_keywords()
def view(
    structures: object,
    values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    arrows: str | Sequence[str] | None = "auto",
    color: str | None = "auto",
    limit: int = 200,
    html: str | os.PathLike[str] | None = None,
) -> View:
    """Show structures in three dimensions: molecules, crystals, clouds of points, trajectories.

    In a notebook the result is shown by chemiscope (``pip install 'molequi[view]'``): structures rotate, a
    slider goes through them, and a click on an atom shows its numbers. Without chemiscope it is a picture.
    A widget adds about 3 MB to a saved notebook; if the environment variable ``MOLEQUI_VIEW`` is "picture",
    notebooks get pictures.

    Parameters
    ----------
    structures : object
        A Graph, ase.Atoms, a Dataset, a list of them, a list of SMILES, or the path of a file of structures
        or of a trajectory. Of the result of `md` or `relax` its trajectory is shown, of several results the
        last frame of each.
    values : mapping, or sequence of mappings, optional
        Numbers and vectors of each structure by name, as `predict` returns them. They replace those of the
        structures that have the same name.
    arrows : str, sequence of str, or None
        Vectors to show as arrows, such as "forces" or ["forces", "dipole"]. Vectors of a structure start at
        its centroid. The longest arrow of most
        structures has 2 Å, and the caption says what 1 Å is. By default the forces, or
        the dipole. The menu of the widget shows and hides all vectors.
    color : str or None
        A number of each atom (or the class of each point) that gives the colors, such as "charges"; None for
        the colors of elements. By default those of elements, and for clouds the first that there is.
    limit : int, > 0
        Largest number of structures; of more, evenly spaced ones are shown.
    html : str or Path, optional
        Also write an interactive page, as `View.save` does.

    Returns
    -------
    View
        ``View.save("view.html")`` writes a page, ``View.save("view.png")`` a picture.

    Raises
    ------
    DataError
        If there is nothing to show, the values do not fit the structures, or a name is not known.
    MissingPackageError
        For a page without chemiscope.

    Examples
    --------
    >>> import molequi as mq
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> mq.view(water, {"dipole": [0.2, 0.3, 0.0]}).scene.caption
    '1 structure; arrows: dipole, 1 Å is 0.18 e Å'
    """
    shown = View(scene_of(structures, values, arrows=arrows, color=color, limit=limit))
    if html is not None:
        shown.save(html)
    return shown
