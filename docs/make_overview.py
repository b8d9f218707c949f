"""The picture of the README: `python docs/make_overview.py` in the root of the repository."""

import copy
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

import molequi as mq

COLORS = {1: "#e8e8e8", 6: "#555555", 8: "#c4472b"}
RADII = {1: 0.31, 6: 0.76, 8: 0.66}
BLUE, RED, GREY = "#2b6cb0", "#c4472b", "#9aa5b1"


def trained() -> tuple[mq.Model, mq.Dataset]:
    """A small force field of ethanol and the frames at another temperature."""
    torch.manual_seed(0)
    cold = mq.read_extxyz("data/ethanol_300K.xyz")
    parts = cold.split({"train": 0.75, "valid": 0.25}, seed=0, by="trajectory")
    backbone = mq.NequIP(elements=cold.elements, cutoff=5.0, channels=16, layers=2, l_max=2, l_out=0)
    model = mq.Model(backbone, predict=["energy", "forces"])
    fitted = mq.fit(
        model,
        parts["train"],
        parts["valid"],
        epochs=30,
        lr=1e-2,
        loss={"energy": 1, "forces": 100},
        normalization={"reference_energies": "data/isolated_atoms.xyz"},
        logging={"progress": False},
    )
    return fitted.model, mq.read_extxyz("data/ethanol_600K.xyz")


def draw_molecule(axis: Axes, graph: mq.Graph, forces: np.ndarray) -> None:
    """Atoms, bonds and forces, seen along the direction in which the molecule is thinnest."""
    pos = graph.pos.numpy() - graph.pos.numpy().mean(0)
    plane = np.linalg.svd(pos, full_matrices=False)[2]
    pos, forces = pos @ plane.T, forces @ plane.T
    z = graph.z.tolist()
    for i in range(len(z)):
        for j in range(i):
            if np.linalg.norm(pos[i] - pos[j]) < 1.25 * (RADII[z[i]] + RADII[z[j]]):
                axis.plot(*pos[[i, j], :2].T, color="#444444", linewidth=4, zorder=1)
    for k in np.argsort(pos[:, 2]):
        size = 0.55 * RADII[z[k]] + 0.1
        axis.add_patch(plt.Circle(pos[k, :2], size, facecolor=COLORS[z[k]], edgecolor="black", zorder=2))
    axis.quiver(*pos[:, :2].T, *forces[:, :2].T, color=BLUE, width=0.009, scale=12, zorder=3)
    axis.set(xlim=(-2.4, 2.4), ylim=(-2.0, 2.0), aspect="equal", title="forces on ethanol")
    axis.axis("off")


def draw_parity(axis: Axes, known: np.ndarray, found: np.ndarray) -> None:
    """Predicted against reference forces."""
    limit = abs(known).max() * 1.05
    axis.plot([-limit, limit], [-limit, limit], color="black", linewidth=0.8)
    axis.plot(known, found, ".", color=BLUE, markersize=1.5, alpha=0.4)
    axis.set(
        xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title="trained at 300 K, tested at 600 K"
    )
    axis.set(xlabel="reference force (eV/Å)", ylabel="predicted force (eV/Å)")
    axis.set_title("trained at 300 K, tested at 600 K")


def draw_audit(axis: Axes, model: mq.Model, frames: mq.Dataset) -> None:
    """Errors of the forces under transforms: of the model, and of the model with one component-wise clamp."""
    broken = copy.deepcopy(model)
    broken.backbone.interactions[0].register_forward_hook(
        lambda layer, inputs, h: torch.cat([h[:, :1], h[:, 1:].clamp(-0.3, 0.3)], dim=1)
    )
    checks = ["permutation", "translation", "reflection", "rotation"]
    for name, tested, color in (("one layer clamped", broken, RED), ("as trained", model, BLUE)):
        rows = mq.audit(tested, frames, limit=4, draws=4, checks=checks).rows
        errors = [max(r.maximum for r in rows if r.check == c and r.quantity == "forces") for c in checks]
        axis.plot(errors, range(len(checks)), "o", color=color, label=name)
    axis.axvline(1e-9, color=GREY, linewidth=1, linestyle="--")
    axis.set(
        xscale="log", xlim=(1e-17, 10), title="audit: error of the forces", xlabel="largest relative error"
    )
    axis.set_yticks(range(len(checks)), checks)
    axis.set_ylim(-0.6, len(checks) - 0.4)
    axis.legend(frameon=False, loc="lower right", fontsize=8)


def main() -> None:
    """Train, draw, save."""
    warnings.simplefilter("ignore")
    model, hot = trained()
    found = mq.predict(model, hot, progress=False)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    draw_molecule(axes[0], hot[0], np.asarray(found[0]["forces"]))
    known = np.concatenate([g.targets["forces"].numpy().ravel() for g in hot])
    draw_parity(axes[1], known, np.concatenate([np.asarray(f["forces"]).ravel() for f in found]))
    draw_audit(axes[2], model, hot)
    figure.savefig(Path(__file__).with_name("_static") / "overview.png", dpi=110)


if __name__ == "__main__":
    main()
