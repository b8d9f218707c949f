"""molequi: E(n)-equivariant graph networks for molecules and 3D point clouds, whose symmetry is measured."""

# The names of this module are what an editor offers after `molequi.`, so these have an underscore.
import importlib as _importlib
import sys as _sys
import types as _types
import typing as _typing

__version__ = "0.1.0"

# The module of each public name. Names are imported on first use, so that `import molequi` stays fast.
_MODULE_OF = {
    "Augmentation": "approximate",
    "Backbone": "models",
    "Barostat": "simulation",
    "BatchSize": "training",
    "Calculator": "interfaces",
    "Compute": "training",
    "ConstraintAnnealing": "approximate",
    "Dataset": "data",
    "Ensemble": "ensemble",
    "EquivarianceRegularizer": "approximate",
    "EquivarianceSelection": "approximate",
    "Features": "features",
    "Field": "graph",
    "Finetuning": "training",
    "Graph": "graph",
    "Guard": "simulation",
    "Head": "heads",
    "Hook": "training",
    "Inputs": "models",
    "Limits": "simulation",
    "Logging": "training",
    "Loss": "losses",
    "Model": "model",
    "Normalization": "training",
    "Optimizer": "training",
    "Penalty": "training",
    "Quantity": "quantities",
    "Replay": "training",
    "Schedule": "training",
    "Thermostat": "simulation",
    "Validation": "training",
    "accelerate": "accelerate",
    "active_learning": "active",
    "add_field": "graph",
    "add_hessian_products": "analysis",
    "audit": "audit",
    "check_engines": "engines",
    "collate": "graph",
    "compare": "config",
    "connect": "neighbors",
    "convert": "foreign",
    "descriptors": "inference",
    "elastic": "analysis",
    "eos": "analysis",
    "evaluate": "inference",
    "fit": "training",
    "foundation": "foreign",
    "from_atoms": "readers",
    "from_pyg": "readers",
    "hessian": "analysis",
    "hessian_vector_product": "analysis",
    "infrared": "analysis",
    "laplace": "inference",
    "learning_curve": "config",
    "lie_errors": "audit",
    "lint": "lint",
    "load": "checkpoint",
    "load_dataset": "readers",
    "md": "simulation",
    "md_many": "simulation",
    "merge": "merging",
    "nbody": "readers",
    "neb": "simulation",
    "phonons": "analysis",
    "predict": "inference",
    "prepare": "preparation",
    "raman": "analysis",
    "read_ase": "readers",
    "read_extxyz": "readers",
    "read_hdf5": "readers",
    "read_mols": "readers",
    "read_npz": "readers",
    "read_points": "readers",
    "read_pyg": "readers",
    "read_sdf": "readers",
    "read_smiles": "readers",
    "read_store": "readers",
    "relax": "simulation",
    "relax_many": "simulation",
    "report": "config",
    "response": "quantities",
    "run": "config",
    "sample": "generative",
    "sample_frames": "simulation",
    "save": "checkpoint",
    "screen": "screening",
    "select": "inference",
    "shipped": "datasets",
    "symmetries": "audit",
    "symmetry_test": "data_symmetry",
    "to_atoms": "readers",
    "to_pyg": "readers",
    "train_file": "config",
    "vibrations": "analysis",
    "view": "view",
    "write_npz": "readers",
}
PUBLIC_MODULES = (
    "analysis",
    "approximate",
    "checkpoint",
    "config",
    "data",
    "data_symmetry",
    "datasets",
    "discovery",
    "engines",
    "errors",
    "foreign",
    "generative",
    "heads",
    "inference",
    "interfaces",
    "merging",
    "models",
    "nn",
    "ops",
    "plotting",
    "quantities",
    "readers",
    "screening",
    "simulation",
    "spectral",
    "symmetry",
    "terms",
    "training",
    "weights",
)

__all__ = sorted(_MODULE_OF)  # and the backbones, which are listed in `molequi.models` alone

if _typing.TYPE_CHECKING:  # what editors and type checkers see
    from molequi import (
        analysis,
        approximate,
        checkpoint,
        config,
        data,
        data_symmetry,
        datasets,
        discovery,
        engines,
        errors,
        foreign,
        generative,
        heads,
        inference,
        interfaces,
        merging,
        models,
        nn,
        ops,
        plotting,
        quantities,
        readers,
        screening,
        simulation,
        spectral,
        symmetry,
        terms,
        training,
        weights,
    )
    from molequi.accelerate import accelerate
    from molequi.active import active_learning
    from molequi.analysis import (
        add_hessian_products,
        elastic,
        eos,
        hessian,
        hessian_vector_product,
        infrared,
        phonons,
        raman,
        vibrations,
    )
    from molequi.approximate import (
        Augmentation,
        ConstraintAnnealing,
        EquivarianceRegularizer,
        EquivarianceSelection,
    )
    from molequi.audit import audit, lie_errors, symmetries
    from molequi.checkpoint import load, save
    from molequi.config.automatic.compare import compare
    from molequi.config.automatic.train import train_file
    from molequi.config.curve import learning_curve
    from molequi.config.report import report
    from molequi.config.run import run
    from molequi.data import Dataset
    from molequi.data_symmetry import symmetry_test
    from molequi.datasets import shipped
    from molequi.engines import check_engines
    from molequi.ensemble import Ensemble
    from molequi.features import Features
    from molequi.foreign import convert, foundation
    from molequi.generative import sample
    from molequi.graph import Field, Graph, add_field, collate
    from molequi.heads import Head
    from molequi.inference.descriptors import descriptors
    from molequi.inference.evaluate import evaluate
    from molequi.inference.laplace import laplace
    from molequi.inference.predict import predict
    from molequi.inference.selection import select
    from molequi.interfaces import Calculator
    from molequi.lint import lint
    from molequi.losses import Loss
    from molequi.merging.merge import merge
    from molequi.model import Model
    from molequi.models import (
        EGNN,
        MACE,
        Backbone,
        Equiformer,
        GauntACE,
        GroupConvNet,
        Inputs,
        NequIP,
        NequIPGNN,
        PaiNN,
        PointHierarchy,
        RelaxedEGNN,
        RelaxedNequIP,
        SevenNet,
        So3krates,
        Transformer,
    )
    from molequi.neighbors import connect
    from molequi.preparation import prepare
    from molequi.quantities import Quantity, response
    from molequi.readers import (
        from_atoms,
        from_pyg,
        load_dataset,
        read_ase,
        read_extxyz,
        read_hdf5,
        read_mols,
        read_npz,
        read_points,
        read_pyg,
        read_sdf,
        read_smiles,
        read_store,
        to_atoms,
        to_pyg,
        write_npz,
    )
    from molequi.readers.nbody import nbody
    from molequi.screening.screen import screen
    from molequi.simulation import (
        Barostat,
        Guard,
        Limits,
        Thermostat,
        md,
        md_many,
        neb,
        relax,
        relax_many,
        sample_frames,
    )
    from molequi.training import (
        BatchSize,
        Compute,
        Finetuning,
        Hook,
        Logging,
        Normalization,
        Optimizer,
        Penalty,
        Replay,
        Schedule,
        Validation,
    )
    from molequi.training.fit import fit
    from molequi.view.view import view


def __getattr__(name: str) -> _typing.Any:
    if name in _MODULE_OF:
        value = getattr(_importlib.import_module(f"molequi.{_MODULE_OF[name]}"), name)
    elif name in PUBLIC_MODULES:
        value = _importlib.import_module(f"molequi.{name}")
    elif not name.startswith("_") and name in (backbones := _backbones()):
        value = backbones[name]
    else:
        attributes = _importlib.import_module("molequi.util.attributes")
        public = [*_MODULE_OF, *PUBLIC_MODULES, *_backbones()] if not name.startswith("_") else []
        raise attributes.no_attribute("module 'molequi'", name, public, attributes.OF_PACKAGE)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(
        {*_MODULE_OF, *PUBLIC_MODULES, *_backbones(), *(n for n in globals() if n.startswith("__"))}
    )


def _backbones() -> dict[str, _typing.Any]:
    return _importlib.import_module("molequi.models").BACKBONES


class _Package(_types.ModuleType):
    def __setattr__(self, name: str, value: _typing.Any) -> None:
        # Importing the module `audit` or `accelerate` would replace the function of the same name.
        if not (isinstance(value, _types.ModuleType) and name in _MODULE_OF):
            super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package
