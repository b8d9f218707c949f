"""A Scene for chemiscope: its data set, and a page that holds everything it needs."""

import html
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from molequi.errors import MissingPackageError
from molequi.plotting.scenes import ARROW_COLOURS, Scene
from molequi.util.optional import require

_SHORTEST = 1e-3  # Å; a shorter arrow has no visible direction
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  body {{ margin: 0 auto; max-width: 60rem; padding: 0.5rem; background: white; color: black;
         font-family: system-ui, sans-serif; }}
  #structure {{ height: min(70vh, 36rem); }}
</style>
</head>
<body>
<div id="meta"></div>
<div id="structure"></div>
<div id="info"></div>
<p id="problem"></p>
<script>{library}</script>
<script>
const problem = document.getElementById("problem");
const warnings = new Chemiscope.Warnings();
warnings.addHandler((message) => {{ problem.innerText = message; }});
const data = {data};
const places = {{ meta: "meta", structure: "structure", info: "info" }};
Chemiscope.StructureVisualizer.load(places, data, warnings)
  .then(() => {{ document.body.dataset.state = "ready"; }})
  .catch((error) => {{ problem.innerText = error; }});
</script>
</body>
</html>
"""


def require_chemiscope(purpose: str) -> None:
    """Raise MissingPackageError if chemiscope is not installed.

    Parameters
    ----------
    purpose : str
        What needs it; the message begins with it.
    """
    require("chemiscope", "view", purpose)


def dataset(scene: Scene, *, wide: bool = True) -> dict[str, Any]:
    """The data set of chemiscope, as its documentation describes the file format.

    Parameters
    ----------
    scene : Scene
        What to show.
    wide : bool
        Whether the whole caption fits above the structures; otherwise it is its description.

    Returns
    -------
    dict
        Plain values for JSON.
    """
    import chemiscope

    structures = [
        {
            "size": len(atoms),
            "names": atoms.get_chemical_symbols(),
            **{axis: atoms.positions[:, k].round(4).tolist() for k, axis in enumerate("xyz")},
            **({"cell": atoms.cell.array.ravel().tolist()} if atoms.cell.rank == 3 else {}),
        }
        for atoms in scene.frames
    ]
    environments = [(k, i, 3.5) for k, atoms in enumerate(scene.frames) for i in range(len(atoms))]
    return chemiscope.create_input(
        structures,
        metadata={"name": scene.caption if wide else scene.title, "description": scene.caption},
        properties=_properties(scene),
        environments=environments if scene.node_scalars else None,
        shapes={name: _arrows(scene, name, k) for k, name in enumerate(scene.vectors)} or None,
        settings=_settings(scene),
    )


def _properties(scene: Scene) -> dict[str, dict[str, Any]]:
    """Numbers of structures and atoms, and the number of each structure."""

    def entry(target: str, values: list[Any], name: str) -> dict[str, Any]:
        unit = scene.units.get(name)
        return {"target": target, "values": values} | ({"units": unit} if unit else {})

    found = {"index": entry("structure", list(scene.index), "index")}
    for name, values in scene.scalars.items():
        found[name] = entry("structure", values.tolist(), name)
    for name, rows in scene.node_scalars.items():
        found[name] = entry("atom", np.concatenate(rows).tolist(), name)
    return found


def _arrows(scene: Scene, name: str, number: int) -> dict[str, Any]:
    """The shape of one kind of vectors."""
    colour = ARROW_COLOURS[number % len(ARROW_COLOURS)]
    arrows: list[dict[str, Any]] = []
    whole = all(len(vectors) == 1 for vectors in scene.vectors[name])
    for frame in range(len(scene.frames)):
        for start, vector in zip(*scene.arrow(name, frame)):
            length = float(np.linalg.norm(vector))
            # The head is part of the arrow, also of a short one; without a length there is nothing to show.
            one = {"vector": vector.round(4).tolist(), "headLength": min(0.3, 0.5 * length)}
            if length < _SHORTEST:
                one |= {"vector": [0.0, 0.0, 1.0], "scale": 0.0}
            arrows.append(one | ({"position": start.tolist()} if whole else {}))
    common = {"baseRadius": 0.08, "headRadius": 0.17, "color": int(colour[1:], 16)}
    return {
        "kind": "arrow",
        "parameters": {"global": common, "structure" if whole else "atom": arrows},
    }


def _settings(scene: Scene) -> dict[str, Any]:
    import chemiscope

    first = scene.frames[0].get_chemical_symbols()
    trajectory = len(scene.frames) > 1 and all(a.get_chemical_symbols() == first for a in scene.frames)
    chosen: dict[str, Any] = {"shape": list(scene.arrows), "bonds": bool(scene.frames[0].numbers.any())}
    if scene.color is not None:
        values, classes = np.concatenate(scene.node_scalars[scene.color]), scene.classes.get(scene.color)
        # The colours mean the same in all structures; each class has one of the 10 or 20 of its palette.
        steps = 10 if classes and len(classes) <= 10 else 20
        chosen["color"] = {
            "property": scene.color,
            "palette": f"tab{steps}" if classes else "viridis",
            "min": 0 if classes else float(values.min()),
            "max": steps - 1 if classes else float(values.max()),
        }
    return chemiscope.quick_settings(
        trajectory=trajectory,
        periodic=any(atoms.pbc.any() for atoms in scene.frames),
        structure_settings=chosen,
    )


def page(data: Mapping[str, Any], title: str) -> str:
    """A page that shows a data set without network and server, with chemiscope's own script inside.

    Parameters
    ----------
    data : mapping
        As `dataset` makes it.
    title : str
        Title of the page.

    Returns
    -------
    str
        HTML, about 3 MB.
    """
    require_chemiscope("an interactive page")
    script = importlib.resources.files("chemiscope") / "sphinx" / "static" / "chemiscope.min.js"
    if not script.is_file():
        raise MissingPackageError(
            f"this version of chemiscope has no {script.name} for pages: pip install 'molequi[view]' -U"
        )
    # Within a script, "</script" would end it, wherever it stands.
    library = script.read_text("utf-8").replace("</script", "<\\/script")
    text = json.dumps(data).replace("<", "\\u003c")
    return _PAGE.format(title=html.escape(title), library=library, data=text)
