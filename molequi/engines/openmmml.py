"""A model as a potential of openmmml: systems that a model computes, and mixed ones with a force field.

`molequi.openmmml` is what openmmml finds. The force is that of `molequi.engines.openmm_force`.
"""

import inspect
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import openmm
from ase import Atoms
from openmmml.mlpotential import MLPotential, MLPotentialImpl, MLPotentialImplFactory

from molequi.checkpoint import load
from molequi.engines.evaluator import Evaluator
from molequi.engines.openmm import OpenMMSystem, force_of
from molequi.engines.openmm import system_of as openmm_system
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError, UnknownKeywordError, did_you_mean
from molequi.model import Model
from molequi.util.signature import check_keywords

_OPTIONS = tuple(name for name in inspect.signature(Evaluator).parameters if name != "model")
_RENAMED = {"multiplicity": "spin", "precision": "dtype"}  # names of other potentials of openmmml
_EMBEDDING = ("linkAtomDistances",)  # of openmmml's mechanical embedding


class Potential(MLPotentialImpl):
    """A model of molequi for `openmmml.MLPotential`, which makes it.

    Parameters
    ----------
    modelPath : Model, Ensemble, str or Path
        The file of a model, or the model.

    Raises
    ------
    ConfigError
        Without a model.
    UnknownKeywordError
        For other arguments.
    CheckpointError
        If the file is no model.
    """

    @check_keywords({name: f"createSystem(topology, {name}=…)" for name in _OPTIONS})
    def __init__(self, *, modelPath: Model | Ensemble | str | os.PathLike[str] | None = None) -> None:
        model = load(modelPath) if isinstance(modelPath, (str, os.PathLike)) else modelPath
        if not isinstance(model, (Model, Ensemble)):
            found = "is missing" if model is None else f"is {model!r}"
            raise ConfigError(
                f"modelPath {found}; wanted a model or its file: MLPotential('molequi', "
                "modelPath='model.safetensors')"
            )
        self.model = model

    def getMLLongRange(self) -> bool:
        """Whether charges of the model interact at any distance (`molequi.terms.LongRange`).

        Then openmmml takes the charges of a force field in a periodic system for images of the part of the
        model out, and otherwise leaves them in.
        """
        return "long_range" in self.model.energy_terms

    def addForces(
        self,
        topology: Any,
        system: Any,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **args: Any,
    ) -> None:
        """Add the force of the model to a system. openmmml calls it.

        Parameters
        ----------
        topology : openmm.app.Topology
            Elements of the particles; whether it has a box says whether the model sees periodic images.
        system : openmm.System
            Gets the force.
        atoms : iterable of int, optional
            Particles that the model computes; None: all.
        forceGroup : int
            Group of the force.
        **args
            Options of `molequi.engines.Evaluator`. With `atoms` also those of the embedding.

        Raises
        ------
        UnknownKeywordError
            For options that are neither.
        DataError
            For a System and a topology of different sizes, for atoms that are not there, are named twice or
            have no element, for no atoms at all, and if either the topology or the force field is periodic
            and the other is not. (With ``interpolate=True`` openmmml does not show the force field, and
            nothing is said.)
        ModelError
            As `molequi.engines.openmm_force`.
        """
        chosen = None if atoms is None else [int(k) for k in atoms]
        options = _options(args, mixed=chosen is not None)
        count, there = system.getNumParticles(), topology.getNumAtoms()
        if count not in (0, there):  # 0: with interpolate=True openmmml gives a System of its own
            raise DataError(
                f"the System has {count} particles and the topology {there} atoms; wanted both of the same "
                "molecules, as forcefield.createSystem(topology) makes the System"
            )
        numbers = _numbers(topology, chosen)
        force = force_of(self.model, numbers, _periodic(topology, system), **options)
        force.setForceGroup(forceGroup)
        if chosen is not None:
            force.setParticles(chosen)
        system.addForce(force)


def system_of(atoms: Atoms, model: Model | Ensemble, **options: Any) -> OpenMMSystem:
    """As `molequi.engines.openmm_system`, with a System that openmmml makes.

    Parameters
    ----------
    atoms, model, **options
        As there.
    """
    made, factory = openmm_system(atoms, model, **options), MLPotentialImplFactory()
    factory.createImpl = lambda name, **args: Potential(**args)  # keeps no model
    MLPotential.registerImplFactory("molequi-check", factory)  # a source tree has no entry points
    potential = MLPotential("molequi-check", modelPath=model)
    system = potential.createSystem(made.topology, removeCMMotion=False, **options)
    for k, mass in enumerate(atoms.get_masses()):  # openmmml takes those of the elements
        system.setParticleMass(k, float(mass))
    return replace(made, system=system)


def _options(args: dict[str, Any], *, mixed: bool) -> dict[str, Any]:
    """The options of the evaluator. Others may be those of an embedding, unless they look like ours."""
    call = "createMixedSystem" if mixed else "createSystem"
    for name in args:
        if name in _OPTIONS or (mixed and name in _EMBEDDING):
            continue
        if name in _RENAMED:
            raise UnknownKeywordError(f"{call}({name}=…): the name here is {_RENAMED[name]!r}")
        hint = did_you_mean(name, _OPTIONS)
        if not mixed or "did you mean" in hint:
            raise UnknownKeywordError(f"{call}({name}=…): molequi has no such option{hint}")
    return {name: value for name, value in args.items() if name in _OPTIONS}


def _numbers(topology: Any, chosen: list[int] | None) -> np.ndarray:
    """Atomic numbers of the chosen atoms."""
    atoms = list(topology.atoms())
    chosen = list(range(len(atoms))) if chosen is None else chosen
    if not chosen:
        raise DataError("no atoms for the model; wanted the indices of one or more atoms of the topology")
    times = Counter(chosen)
    for k in chosen:
        if not 0 <= k < len(atoms):
            raise DataError(f"atom {k}: the topology has {len(atoms)}; wanted 0 to {len(atoms) - 1}")
        if times[k] > 1:  # else computed as two atoms at the same place
            raise DataError(f"atom {k} is named {times[k]} times; wanted each atom of the part once")
        if atoms[k].element is None:
            raise DataError(
                f"atom {k} ({atoms[k].name} of {atoms[k].residue.name}) has no element, so that no model can "
                "compute it; take a topology without such sites, or leave their molecules to the force field"
            )
    return np.array([atoms[k].element.atomic_number for k in chosen], dtype=np.int64)


def _periodic(topology: Any, system: Any) -> bool:
    """Whether the topology has a box; with a force field beside the model, both have to agree."""
    boxed = topology.getPeriodicBoxVectors() is not None
    kinds = (openmm.NonbondedForce, openmm.CustomNonbondedForce)
    if any(isinstance(force, kinds) for force in system.getForces()):
        images = system.usesPeriodicBoundaryConditions()
        if boxed != images:
            raise DataError(
                f"the topology has {'a' if boxed else 'no'} periodic box, and the force field sees "
                f"{'' if images else 'no '}periodic images; wanted both or neither: type "
                + (
                    "topology.setPeriodicBoxVectors(None)"
                    if boxed
                    else "topology.setPeriodicBoxVectors(system.getDefaultPeriodicBoxVectors())"
                )
            )
    return boxed
