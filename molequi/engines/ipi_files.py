"""Files of a simulation by i-PI, and a folder for them."""

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase import Atoms

from molequi.engines.ipi_driver import PATH


@contextlib.contextmanager
def quiet_folder() -> Iterator[Path]:
    """A folder for the files of i-PI, and nothing of what it prints."""
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.chdir(name),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of what i-PI itself uses
        from ipi.utils.softexit import softexit

        try:
            yield Path(name)
        finally:
            softexit._doloop[0] = False  # ends its thread
            softexit.reset()  # gives back Ctrl-C


def start_file(atoms: Atoms) -> str:
    """The structure in the format of i-PI, with all digits."""
    cell = " ".join(repr(float(x)) for x in atoms.cell.array.T.ravel())
    lines = [f"{s} {x!r} {y!r} {z!r}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions.tolist())]
    return "\n".join(
        [str(len(atoms)), f"# CELL(H): {cell} cell{{angstrom}} positions{{angstrom}}", *lines, ""]
    )


def input_file(atoms: Atoms, model: Path, timestep: float, options: dict[str, Any]) -> str:
    """The input of dynamics at constant energy, with the driver in the process of i-PI."""
    extra = "".join(f", {name}: {value}" for name, value in options.items())
    masses = ", ".join(repr(float(m)) for m in atoms.get_masses())
    return f"""<simulation verbosity='quiet' threading='false'>
<output prefix='{os.getcwd()}/out'> </output>
<total_steps>1000000000</total_steps>
<ffdirect name='molequi' pbc='false'>
  <pes>custom</pes> <pes_path>{PATH}</pes_path>
  <parameters>{{model: {model}, template: {model.parent}/template.extxyz{extra}}}</parameters>
</ffdirect>
<system>
  <initialize nbeads='1'>
    <file mode='xyz'>{model.parent}/start.xyz</file>
    <masses mode='manual' units='dalton'> [ {masses} ] </masses>
  </initialize>
  <forces><force forcefield='molequi'/></forces>
  <motion mode='dynamics'>
    <fixcom>False</fixcom>
    <dynamics mode='nve'><timestep units='femtosecond'>{timestep}</timestep></dynamics>
  </motion>
</system>
</simulation>"""
