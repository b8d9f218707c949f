"""A workflow of jobflow: train a force field, relax a structure with it, simulate it at several temperatures."""

import sys
from pathlib import Path

from jobflow import Flow, job, run_locally

import molequi as mq


@job
def train(data: str, epochs: int = 30) -> dict:
    """Train a force field on the frames of a file."""
    frames = mq.read_extxyz(data)
    parts = frames.split([0.8, 0.2], seed=0)
    backbone = mq.PaiNN(elements=frames.elements, cutoff=5.0, channels=32)
    model = mq.Model(backbone, predict=["energy", "forces"])
    result = mq.fit(model, *parts, epochs=epochs, lr=5e-3, out="model", logging={"progress": False})
    return {
        "model": str(Path("model/model.safetensors").absolute()),
        "errors": result.errors["valid"].numbers(),
    }


@job
def relax(structure: str, model: str) -> dict:
    """Find the nearest minimum of the energy."""
    result = mq.relax(structure, model, out="relaxed", progress=False)
    return {
        "structure": str(Path("relaxed/last.xyz").absolute()),
        "energy": float(result.atoms.get_potential_energy()),
    }


@job
def simulate(structure: str, model: str, temperature: float, steps: int = 2000) -> dict:
    """Molecular dynamics at one temperature."""
    run = mq.md(
        structure,
        model,
        ensemble="langevin",
        temperature=temperature,
        timestep=0.5,
        steps=steps,
        out="md",
        progress=False,
    )
    return {
        "trajectory": str(Path("md/trajectory.xyz").absolute()),
        "averages": {name: average.mean for name, average in run.averages.items()},
    }


def workflow(data: str, temperatures: list[float], epochs: int = 30, steps: int = 2000) -> Flow:
    """The jobs and what each takes from those before it; its output is that of the simulations."""
    trained = train(data, epochs)
    relaxed = relax(data, trained.output["model"])
    runs = [
        simulate(relaxed.output["structure"], trained.output["model"], kelvin, steps)
        for kelvin in temperatures
    ]
    return Flow([trained, relaxed, *runs], output=[run.output for run in runs])


if __name__ == "__main__":
    flow = workflow(str(Path(sys.argv[1]).absolute()), [200.0, 300.0])
    answers = run_locally(flow, create_folders=True, ensure_success=True)
    for one in flow.jobs:
        print(one.name, answers[one.uuid][1].output)
