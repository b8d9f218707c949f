"""A calculator that was used before a fork computes in the forked processes, and never waits for lost threads."""

import multiprocessing
import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import multiprocessing, sys, torch, warnings
    import molequi as mq
    from ase.build import bulk

    torch.set_num_threads(2)
    cell = bulk("Cu", cubic=True) * (4, 4, 4)
    cell.rattle(0.05)
    model = mq.Model(mq.PaiNN(elements=["Cu"], cutoff=4.5, channels=32, layers=1))
    model.use_program(lambda own, graph, create_graph: own.predict(graph, create_graph))
    CALCULATOR = mq.Calculator(model, dtype="float64")

    def energy(shift):
        atoms = cell.copy()
        atoms.positions += shift
        atoms.calc = CALCULATOR
        return atoms.get_potential_energy(), torch.get_num_threads()

    if __name__ == "__main__":
        before, threads = energy(0.0)
        warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(energy, [0.1, 0.2]).get(60)
        assert threads == 2 and all(n == 1 for _, n in found)
        assert all(abs(one - before) < 1e-9 for one, _ in found), (before, found)
        print("computed")
"""


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(),
    reason="this operating system cannot fork processes",
)
def test_a_forked_pool_computes(tmp_path):
    (tmp_path / "forked.py").write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, tmp_path / "forked.py"], capture_output=True, text=True, env=environment, timeout=150
    )
    assert "computed" in done.stdout, done.stderr
