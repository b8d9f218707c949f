"""What a damaged input is put into: readers, commands, run files, model files, states of trainings, kept neighbor lists.

Each target takes an input file in a folder of its own. It may return, or raise an error of molequi; any other exception is a fault, and so
is a result that a damaged file must not give, for which it raises `Wrong`.
"""

import contextlib
import io
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import molequi as mq
from molequi import checkpoint
from molequi.cli import main
from molequi.config.schema import build_model, read_config
from molequi.errors import MolequiError
from molequi.readers import read_points
from molequi.training.trainer import Training
from molequi.util.state_files import StateFiles

from ..morse_kit import morse, tiny
from . import good_files, mutate


class Wrong(AssertionError):
    """A damaged file was taken for a good one, or a command left something behind."""


OPTIONS: dict[str, dict[str, Any]] = {
    "m.sdf": {"quantities": ["gap"], "units": {"gap": "eV"}},
    "md17.npz": {"units": {"energy": "kcal/mol", "forces": "kcal/mol/Å"}},
}
POINTS = (".npy", ".ply", ".off", ".obj", ".stl", ".txt")
QUIET = {"logging": {"progress": False}}
SAVED = {"logging": {"progress": False, "save_minutes": 0}}


class Stopped(Exception):
    """Stops a training."""


def stopping(replace: Callable[[object, str, object], None], at: int) -> None:
    """Make every training stop before a step."""
    original = Training.step

    def step(self: Training, *arguments: Any) -> None:
        if self.place.step == at:
            raise Stopped
        original(self, *arguments)

    replace(Training, "step", step)


def read(path: Path, rng: random.Random) -> None:
    """Read structures and connect them."""
    kept = OPTIONS.get(path.name, {})
    if path.suffix == ".txt" or (path.suffix in POINTS and rng.random() < 0.5):
        surface = () if path.suffix == ".txt" else ({"normals": True, "samples": 20},)
        more = rng.choice(({}, {"samples": None}, {"normalize": "rms"}, *surface))
        data = read_points(path, **more)
    else:
        data = mq.load_dataset(path, **kept)
    data.summary()
    if data.counts.max() < 2000:
        data.connected(3.0, **({"k": 4} if rng.random() < 0.2 else {}))


COMMANDS = (
    ["predict", "model.safetensors", "FILE", "out.xyz"], ["predict", "model.safetensors", "FILE", "out.csv"],
    ["evaluate", "model.safetensors", "FILE"], ["audit", "model.safetensors", "FILE", "--draws", "1"],
    ["relax", "model.safetensors", "FILE", "--steps", "2", "--out", "out"],
    ["md", "model.safetensors", "FILE", "--steps", "2", "--out", "out"],
    ["train", "FILE", "train.epochs=1", "train.out=out", "backbone.EGNN.channels=4", "backbone.EGNN.layers=1", "train.logging.progress=false"],
)  # fmt: skip


def command(path: Path, rng: random.Random) -> None:
    """A command of the command line with the file: status 0, 1 or 2, and no files that are half written."""
    shutil.copy(path.parent.parent / "model.safetensors", path.parent)
    words = [path.name if word == "FILE" else word for word in rng.choice(COMMANDS)]
    status, error = called(words)
    if status not in (0, 1, 2):
        raise Wrong(f"{words}: status {status}")
    if status == 2 and not error.strip().startswith("molequi: "):
        raise Wrong(f"{words}: no message: {error[-300:]}")
    left = [p.name for p in path.parent.rglob("*") if p.suffix in (".tmp",)]
    if left or (
        status == 2
        and words[0] == "predict"
        and any((path.parent / n).exists() for n in ("out.xyz", "out.csv"))
    ):
        raise Wrong(f"{words}: left {left or 'a result'} after an error")


def called(words: list[str]) -> tuple[int, str]:
    """Status and standard error of a command, run in this process."""
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 2
    return status, error.getvalue()


def config(path: Path, rng: random.Random) -> None:
    """Read a run file, perhaps with a setting of the command line, and build its model."""
    overrides = []
    if rng.random() < 0.3:
        name = rng.choice(
            (
                "train.lr",
                "train",
                "backbone.PaiNN.channels",
                "data.extxyz.keys",
                "predict",
                "train.loss.forces",
                "x",
                "train.terms",
            )
        )
        overrides = [f"{name}={rng.choice(mutate.WORDS).decode('latin-1')}"]
    settings = read_config(path, overrides)
    build_model(settings, [1, 6, 8])


def model(path: Path, rng: random.Random) -> None:
    """Load a model file and predict."""
    loaded = mq.load(path)
    water = mq.connect(mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1]), 3.0)
    loaded(water)
    repr(loaded)
    if rng.random() < 0.3:
        called(["info", str(path)])


def weights(path: Path, rng: random.Random) -> None:
    """Load a model file whose bytes were changed: refused, or the weights are those of the good file."""
    good = checkpoint.load(path.parent.parent / "models" / path.name)
    changed = checkpoint.load(path)
    _same(good.state_dict(), changed.state_dict(), path)


def _same(good: dict[str, torch.Tensor], found: dict[str, torch.Tensor], path: Path) -> None:
    if good.keys() != found.keys() or not all(torch.equal(good[n], found[n]) for n in good):
        raise Wrong(f"{path.name}: loaded with changed weights")


def state(path: Path, rng: random.Random) -> None:
    """Continue a training from a changed state: refused, or from the state before it."""
    folder = path.parent / "run"
    shutil.copytree(path.parent.parent / "run", folder)
    shutil.copy(path, folder / path.name)
    data = morse(6)
    mq.fit(tiny(), data[:4], data[4:], epochs=2, batch_size=2, seed=0, out=folder, **QUIET)


def neighbors(path: Path, rng: random.Random) -> None:
    """Use a kept list of neighbors that was changed: it is made again."""
    data = morse(4)
    cache = path.parent / "cache"
    cache.mkdir()
    shutil.copy(path, cache / path.name)
    for graph, wanted in zip(data.connected(3.0, cache), data.connected(3.0)):
        if not torch.equal(graph.edge_index, wanted.edge_index):
            raise Wrong("other neighbors")


Target = Callable[[Path, random.Random], None]
TARGETS: dict[str, Target] = {
    "read": read, "command": command, "config": config, "model": model, "weights": weights, "state": state, "neighbors": neighbors,
}  # fmt: skip
SHARES = {"read": 10, "command": 4, "config": 4, "model": 3, "weights": 2, "state": 1, "neighbors": 1}


class Inputs:
    """Good files in a folder, and inputs made from them.

    Parameters
    ----------
    folder : Path
        Where the good files are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.structures = good_files.write_structures(folder / "structures")
        self.models = good_files.write_models(folder / "models")
        shutil.copy(folder / "models" / "PaiNN.safetensors", folder / "model.safetensors")
        shutil.copy(folder / "structures" / "molecules.xyz", folder / "molecules.xyz")
        data = morse(6)
        with pytest.MonkeyPatch.context() as patched, contextlib.suppress(Stopped):
            stopping(patched.setattr, 3)
            mq.fit(tiny(), data[:4], data[4:], epochs=2, batch_size=2, seed=0, out=folder / "run", **SAVED)
        morse(4).connected(3.0, folder / "cache")
        self.states = [p for p in StateFiles(folder / "run").paths if p.exists()]
        self.caches = sorted((folder / "cache").iterdir())
        self.contents = {
            p: p.read_bytes() for p in (*self.structures, *self.models, *self.states, *self.caches)
        }
        self.others = [self.contents[p] for p in self.structures]

    def draw(self, target: str, folder: Path, rng: random.Random) -> Path:
        """Write an input of a target and return its path."""
        if target == "config":
            return self._config(folder, rng)
        if target == "model":
            return self._model(folder, rng)
        if target == "state":
            return self._state(folder, rng)
        good = rng.choice({"weights": self.models, "neighbors": self.caches}.get(target, self.structures))
        if good.suffix == ".npz" and rng.random() < 0.5:
            return self._arrays(good, folder, rng)
        path = folder / good.name
        path.write_bytes(mutate.mutated(self.contents[good], rng, self.others))
        return path

    def _arrays(self, good: Path, folder: Path, rng: random.Random) -> Path:
        """The arrays of an .npz file with other shapes, types, names and values, in a valid archive."""
        import numpy as np

        with np.load(good) as file:
            arrays = {name: file[name] for name in file.files}
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(list(arrays))
            a = arrays[name]
            kind = rng.randrange(7)
            if kind == 0:
                arrays[name] = (
                    a.astype(
                        rng.choice(("f2", "f4", "f8", "i1", "i8", "u8", "c16", "U4", "?", "S3", "M8[s]")),
                        copy=True,
                    )
                    if a.dtype.kind in "iufb"
                    else a
                )
            elif kind == 1:
                arrays[name] = rng.choice(
                    (
                        a[:-1] if a.ndim else a,
                        a[:0] if a.ndim else a,
                        a.ravel(),
                        a[None],
                        np.asarray(0),
                        np.stack([a, a], -1),
                    )
                )
            elif kind == 2 and a.dtype.kind in "iuf" and a.size:
                a = a.copy()
                limit = np.iinfo(a.dtype) if a.dtype.kind in "iu" else None
                value = (
                    rng.choice((0, -1, 1, 3, limit.max, limit.min))
                    if limit
                    else rng.choice((np.nan, np.inf, 1e155, 1e-300, 0.0, -1.0, 1e6))
                )
                a.flat[rng.randrange(a.size)] = np.array(value).astype(a.dtype)
                arrays[name] = a
            elif kind == 3:
                del arrays[name]
            elif kind == 4:
                arrays[
                    rng.choice(
                        (
                            "pos",
                            "z",
                            "cell",
                            "pbc",
                            "n_atoms",
                            "quantities",
                            "fields",
                            "energy",
                            "x",
                            "R",
                            "F",
                            "a/b",
                            "charge",
                        )
                    )
                ] = a
            elif kind == 5 and a.dtype.kind == "U" and a.ndim == 0:
                with contextlib.suppress(ValueError):
                    arrays[name] = np.array(json.dumps(mutate.mutated_tree(json.loads(a.item()), rng)))
            else:
                arrays[name] = np.zeros((10**6,), np.int8)
            if not arrays:
                break
        path = folder / good.name
        np.savez(path, **{n.replace("/", "_"): a for n, a in arrays.items()})
        return path

    def _config(self, folder: Path, rng: random.Random) -> Path:
        import yaml

        path = folder / "run.yaml"
        recipes = sorted((Path(mq.__file__).parent / "config" / "recipes").glob("*.yaml"))
        text = good_files.CONFIG if rng.random() < 0.6 else rng.choice(recipes).read_text("utf-8")
        if rng.random() < 0.5:
            path.write_bytes(mutate.mutated(text.encode(), rng, [good_files.CONFIG.encode()]))
        else:
            path.write_text(
                yaml.safe_dump(mutate.mutated_tree(yaml.safe_load(text), rng), allow_unicode=True),
                encoding="utf-8",
            )
        return path

    def _model(self, folder: Path, rng: random.Random) -> Path:
        """A model file with a changed header or changed tensors, and a digest that fits."""
        good = rng.choice(self.models)
        header, tensors = good_files.header_of(good)
        if rng.random() < 0.75:
            header = mutate.mutated_tree(header, rng)
        else:
            name = rng.choice(list(tensors))
            t = tensors[name]
            change = rng.randrange(5)
            if change == 0:
                del tensors[name]
            elif change == 1 and t.is_floating_point() and t.numel():
                tensors[name] = t.clone()
                tensors[name].view(-1)[0] = rng.choice((float("nan"), float("inf"), 1e30, -1e30, 0.0))
            elif change == 2:
                tensors[name] = t.to(
                    rng.choice((torch.bfloat16, torch.float16, torch.int8, torch.float64, torch.bool))
                )
            elif change == 3:
                tensors[name] = rng.choice(
                    (t[:0] if t.ndim else t, t.reshape(-1), t[None].repeat(2, *[1] * t.ndim))
                )
            else:
                tensors[rng.choice(("x", "members.0.x", "", "backbone", "heads.energy.x"))] = tensors.pop(
                    name
                )
        text = json.dumps(header)
        tensors = {n: t.contiguous().clone() for n, t in tensors.items()}
        path = folder / good.name
        save_file(tensors, path, metadata={"molequi": text, "sha256": checkpoint.digest(text, tensors)})
        return path

    def _state(self, folder: Path, rng: random.Random) -> Path:
        """A state with changed bytes, or with other values in a file whose digest fits."""
        good = rng.choice(self.states)
        path = folder / good.name
        if rng.random() < 0.3:
            path.write_bytes(mutate.mutated(self.contents[good], rng, self.others))
            return path
        head, _, payload = self.contents[good].partition(b"\n")
        values = torch.load(io.BytesIO(payload), weights_only=True)
        own = StateFiles(folder)
        own.count = int(head.split()[2]) - 1 + 2 * rng.randrange(2)  # the newest of the two, or as it was
        own.save(mutate.mutated_tree(values, rng))
        return path


EXPECTED = (MolequiError,)
