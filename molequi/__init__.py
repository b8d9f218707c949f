"""molequi: E(n)-equivariant graph networks for molecules and 3D point clouds, whose symmetry is measured."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Where each public name lives. They load on first use, so that `import molequi` stays light.
_HOMES = {
    "Quantity": "quantities", "Graph": "graph", "collate": "graph", "Features": "features", "connect": "neighbors",
    "Model": "model", "Ensemble": "ensemble", "accelerate": "accelerate", "Backbone": "models", "Head": "heads",
    "save": "checkpoint", "load": "checkpoint", "Dataset": "data.dataset", "fit": "training", "evaluate": "training", "predict": "training",
    "Calculator": "calculator", "md": "simulation", "relax": "simulation", "audit": "audit", "lie_errors": "audit", "symmetries": "audit", "run": "run", "breaking": "breaking",
}
_ROOMS = ("calculator", "checkpoint", "data", "errors", "heads", "learned", "models", "nn", "ops", "plotting", "quantities", "simulation", "training")

__all__ = sorted(_HOMES)      # the backbones besides, which `molequi.models` alone names

if TYPE_CHECKING:
    from molequi.accelerate import accelerate
    from molequi.audit import audit, lie_errors, symmetries
    from molequi.breaking import breaking
    from molequi.calculator import Calculator
    from molequi.checkpoint import load, save
    from molequi.data.dataset import Dataset
    from molequi.ensemble import Ensemble
    from molequi.features import Features
    from molequi.graph import Graph, collate
    from molequi.heads import Head
    from molequi.model import Model
    from molequi.models import *  # noqa: F403
    from molequi.neighbors import connect
    from molequi.quantities import Quantity
    from molequi.run import run
    from molequi.simulation import md, relax
    from molequi.training import evaluate, fit, predict


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(importlib.import_module(f"molequi.{_HOMES[name]}"), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"molequi.{name}")
    elif not name.startswith("_") and name in (backbones := _backbones()):
        value = backbones[name]
    else:
        raise AttributeError(f"module 'molequi' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_HOMES, *_ROOMS, *_backbones()})


def _backbones() -> dict:
    return importlib.import_module("molequi.models").BACKBONES


class _Package(ModuleType):
    def __setattr__(self, name, value):
        # Importing the room `audit` or `run` would put the module where users expect the function of that name.
        if not (isinstance(value, ModuleType) and _HOMES.get(name) == name):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
