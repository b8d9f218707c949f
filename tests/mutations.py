"""Breaks central lines one by one, in a copy, and requires that the tests notice: `python tests/mutations.py`."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# file, line as it is, line as it must not be, tests that have to fail
MUTATIONS = [
    (
        "molequi/interfaces/neighbor_list.py",
        "(cutoff + skin) * torch.linalg.svdvals(strain)[:, -1] - 2",
        "(cutoff + skin) + 0 * strain[:, 0, 0] - 2",
        "tests/engines/test_evaluator.py",
    ),
    (
        "molequi/engines/lammps_fix.py",
        "f[order] = found.forces",
        "f[:] = found.forces",
        "tests/engines/test_engines.py",
    ),
    (
        "molequi/heads/levels.py",
        "copy.deepcopy(head) for _ in self.levels",
        "head for _ in self.levels",
        "tests/test_levels.py",
    ),
    (
        "molequi/finetuning/session.py",
        "if replay is not None and replay_level == options.level:",
        "if replay is not None:",
        "tests/training/test_levels.py",
    ),
    (
        "molequi/data/structures.py",
        "            table[self.rows] = values",
        "            table[: len(values)] = values",
        "tests/test_levels.py",
    ),
    (
        "molequi/readers/hdf5.py",
        'Key("dft_total_gradient", sign=-1)',
        'Key("dft_total_gradient")',
        "tests/readers/test_hdf5.py",
    ),
    (
        "molequi/readers/hdf5.py",
        "bool(np.any(found != 0))",
        "True",
        "tests/readers/test_hdf5.py",
    ),
    (
        "molequi/readers/npz_parts.py",
        "self.info.header_offset + 30 + name + extra + begin",
        "self.info.header_offset + 30 + name + begin",
        "tests/store/test_formats.py",
    ),
    ("molequi/merging/alignment.py", "maximize=True", "maximize=False", "tests/merging/test_alignment.py"),
    (
        "molequi/weights/symmetry.py",
        "/ factor[:, None]",
        "* factor[:, None]",
        "tests/weights/test_symmetry.py",
    ),
    (
        "molequi/weights/layers.py",
        "above[:, :, None] * below[:, None]",
        "above[:, :, None] + below[:, None]",
        "tests/weights/test_model.py",
    ),
    (
        "molequi/weights/layers.py",
        "return x.mean(gone) if gone else x",
        "return x.select(gone[0], 0) if len(gone) == 1 else x.mean(gone) if gone else x",
        "tests/weights/test_layers.py",
    ),
    (
        "molequi/merging/alignment.py",
        "(moment.abs() if signed else moment)",
        "moment",
        "tests/weights/test_align.py",
    ),
    (
        "molequi/inference/descriptor_files.py",
        "os.truncate(self.file(irrep), size)",
        "pass",
        "tests/inference/test_descriptors.py",
    ),
    ("molequi/gradients.py", "slope = slope * what.factor", "slope = slope * -what.factor", "tests/audit"),
    (
        "molequi/gradients.py",
        "slope / torch.where(volume > 0, volume, 1.0)",
        "-slope / torch.where(volume > 0, volume, 1.0)",
        "tests/audit",
    ),
    (
        "molequi/graph/graph.py",
        "cell = None if self.cell is None else self.cell + self.cell @ strain",
        "cell = self.cell",
        "tests/test_graph.py tests/audit",
    ),
    (
        "molequi/graph/graph.py",
        'vec = vec + torch.einsum("ed,edk->ek", self.shift',
        'vec = vec - torch.einsum("ed,edk->ek", self.shift',
        "tests/test_graph.py tests/test_neighbors.py tests/audit",
    ),
    (
        "molequi/neighbors.py",
        "order = np.lexsort((*shift.T[::-1], j, i))",
        "order = np.lexsort((*shift.T[::-1], i, j))",
        "tests/test_neighbors.py",
    ),
    (
        "molequi/nn/radial.py",
        "return torch.where(length < cutoff, smooth, 0.0)",
        "return torch.ones_like(length)",
        "tests/audit tests/test_model.py",
    ),
    (
        "molequi/nn/radial.py",
        "segment_sum(smooth, receiver, graph.num_nodes)",
        "segment_sum(smooth, receiver, graph.num_nodes) + 1",
        "tests/test_model.py",
    ),
    (
        "molequi/ops/irreps.py",
        "if not reflections or p1 * (-1) ** l2 == p3:",
        "if True:",
        "tests/ops tests/test_model.py",
    ),
    (
        "molequi/ops/products.py",
        "math.sqrt((2 * l3 + 1) / into[k])",
        "math.sqrt((2 * l3 + 2) / into[k])",
        "tests/ops",
    ),
    (
        "molequi/nn/cartesian.py",
        "edges.gather(moved) - edges.vector",
        "edges.gather(moved) + edges.vector",
        "tests/nn",
    ),
    (
        "molequi/heads/base.py",
        'pooled = segment_sum if self.pooling == "sum" else segment_mean',
        "pooled = segment_mean",
        "tests/test_heads.py",
    ),
    (
        "molequi/heads/vectors.py",
        "graph.pos + step, graph, features",
        "step, graph, features",
        "tests/test_heads.py",
    ),
    (
        "molequi/models/painn.py",
        "edges.unit[:, :, None] * along",
        "edges.unit.abs()[:, :, None] * along",
        "tests/test_heads.py",
    ),
    ("molequi/neighbors.py", "[:, 0] * (1 + TIE)", "[:, 0] * (1 - TIE)", "tests/test_neighbors.py"),
    (
        "molequi/nn/radial.py",
        "-(j * edges.unit[:, None]).sum(-1)",
        "-(j * edges.unit.abs()[:, None]).sum(-1)",
        "tests/test_heads.py",
    ),
    ("molequi/symmetry/transform.py", "place[graph.pair_index]", "graph.pair_index", "tests/test_graph.py"),
    (
        "molequi/heads/vectors.py",
        "(graph.pos - center[graph.batch]) + self.vectors",
        "graph.pos + self.vectors",
        "tests/audit tests/test_model.py",
    ),
    (
        "molequi/checkpoint.py",
        'if digest(meta["molequi"], tensors) != meta["sha256"]:',
        "if False:",
        "tests/test_checkpoint.py",
    ),
    ("molequi/losses.py", "torch.isnan", "torch.isinf", "tests/training"),
    (
        "molequi/losses.py",
        "torch.linalg.vector_norm(\n                error, dim",
        "torch.linalg.vector_norm(error, ord=1, dim",
        "tests/test_losses.py",
    ),
    (
        "molequi/ops/sphere.py",
        "fields(l_in, l_out, factors * l_in + l_out)",
        "fields(l_in, l_out, (factors - 1) * l_in + l_out)",
        "tests/ops",
    ),
    (
        "molequi/nn/radial.py",
        "torch.sin(torch.log1p(x) * self.frequencies)",
        "torch.sin(x * self.frequencies)",
        "tests/nn",
    ),
    ("molequi/regular_graphs.py", "reverse[slot] = slot[back]", "reverse[slot] = slot", "tests/ops"),
    (
        "molequi/regular_graphs.py",
        "a.device == b.device and torch.equal(a, b)",
        "a.device == b.device",
        "tests/test_accelerate.py",
    ),
    (
        "molequi/interfaces/neighbor_list.py",
        "key != self._key or",
        "False or",
        "tests/interfaces",
    ),
    (
        "molequi/interfaces/neighbor_list.py",
        "<= (self._skin / 2) ** 2",
        "<= self._skin**2",
        "tests/interfaces",
    ),
    (
        "molequi/interfaces/neighbor_list.py",
        "if last is None or given != self._fields:",
        "if last is None:",
        "tests/interfaces",
    ),
    (
        "molequi/interfaces/ase.py",
        " and model.backbone.smooth_cutoff",
        "",
        "tests/test_accelerate.py",
    ),
    ("molequi/compiled/compiling.py", "        change_weights(other)\n", "", "tests/test_accelerate.py"),
    (
        "molequi/compiled/compiling.py",
        "gradients=create_graph, largest=function.largest)",
        "gradients=create_graph)",
        "tests/test_accelerate.py",
    ),
    (
        "molequi/audit/lie_measure.py",
        "exact[key] - slopes[key] for key in exact",
        "exact[key] + slopes[key] for key in exact",
        "tests/audit/test_lie.py",
    ),
    (
        "molequi/audit/symmetry_reports.py",
        "value > GROWTH * max(known",
        "value < GROWTH * max(known",
        "tests/audit/test_symmetry_reports.py",
    ),
    ("molequi/audit/report.py", ' and ("pass" in alive or not alive)', "", "tests/audit/test_report.py"),
    (
        "molequi/symmetry/groups.py",
        " and (self.translations or not other.translations)",
        "",
        "tests/test_symmetry.py",
    ),
    (
        "molequi/data_symmetry/point_groups.py",
        "        if not new:\n",
        "        if True:\n",
        "tests/data_symmetry/test_point_groups.py",
    ),
    (
        "molequi/data_symmetry/quantity_tests.py",
        "if broken and len(found) < len(every):",
        "if False:",
        "tests/data_symmetry/test_parts.py",
    ),
    (
        "molequi/data_symmetry/dependence.py",
        "found = 4 * size",
        "found = 1",
        "tests/data_symmetry/test_dependence.py",
    ),
    (
        "molequi/discovery/generators.py",
        "(steepness.median() / steepness).clamp(max=1.0)",
        "torch.ones_like(steepness)",
        "tests/discovery/test_generators.py",
    ),
    (
        "molequi/approximate/selection.py",
        "last > UNFITTED * noise",
        "False",
        "tests/approximate/test_selection.py",
    ),
    (
        "molequi/training/soap.py",
        "change = _rotate_back(state, (moment / root).clamp_(-limit, limit))",
        "change = (moment / root).clamp_(-limit, limit)",
        "tests/training/test_soap.py",
    ),
    (
        "molequi/training/soap.py",
        "(moment / root).clamp_(-limit, limit)",
        "(moment / root)",
        "tests/training/test_soap.py",
    ),
    (
        "molequi/models/gauntace.py",
        "coupling.transpose(0, 1).flatten(1)",
        "0 * coupling.transpose(0, 1).flatten(1)",
        "tests/models/test_gauntace.py",
    ),
    (
        "molequi/upgrades.py",
        "range(1, l_max + 1)) - l_hidden",
        "range(1, l_max + 1))",
        "tests/test_checkpoint.py",
    ),
    (
        "molequi/training/soap.py",
        'state["moment"] = _rotate(state, moment)',
        'state["moment"] = moment',
        "tests/training/test_soap.py",
    ),
    (
        "molequi/inference/known_energies.py",
        "(np.asarray(energy, dtype=float) - own[z].sum())",
        "(np.asarray(energy, dtype=float) + own[z].sum())",
        "tests/simulation/test_known_energies.py",
    ),
    (
        "molequi/simulation/sampling.py",
        "file.truncate(self.size)",
        "pass",
        "tests/simulation/test_sampling.py",
    ),
    (
        "molequi/simulation/sampling.py",
        "rng = np.random.default_rng([seed, number])",
        "rng = np.random.default_rng(seed)",
        "tests/simulation/test_sampling.py",
    ),
    (
        "molequi/config/pretraining.py",
        "lr=wanted.lr,",
        "lr=options.lr,",
        "tests/config/test_pretraining.py",
    ),
    (
        "molequi/compiled/kept.py",
        'for piece in (f"{name} {value.dtype} {tuple(value.shape)} ", value.numpy().tobytes())',
        'for piece in (f"{name} ", value.numpy().tobytes())',
        "tests/test_kept_programs.py",
    ),
    (
        "molequi/finetuning/low_rank.py",
        '"b": gradient @ a.transpose(-1, -2)',
        '"b": 0 * gradient @ a.transpose(-1, -2)',
        "tests/training/test_finetuning.py",
    ),
    (
        "molequi/finetuning/replay.py",
        "return self._options.weight * objective.total(objective",
        "return objective.total(objective",
        "tests/training/test_finetuning.py",
    ),
    (
        "molequi/finetuning/session.py",
        "replay = replay.shifted(shifts)",
        "pass",
        "tests/training/test_finetuning.py",
    ),
    (
        "molequi/training/trainer.py",
        'rate * group.get("rate", 1.0)',
        "rate",
        "tests/training/test_finetuning.py",
    ),
    (
        "molequi/finetuning/elements.py",
        "matrix[k, old.index(donor)] = 1.0",
        "matrix[k, 0] = 1.0",
        "tests/training/test_finetuning.py",
    ),
    (
        "molequi/nn/edge_frames.py",
        "sign = torch.where(c < 0, -1.0, 1.0)",
        "sign = torch.where(c < 0, 1.0, 1.0)",
        "tests/nn/test_edge_frames.py",
    ),
    (
        "molequi/nn/edge_frames.py",
        "y = y + torch.stack([-minus, plus], dim=1)",
        "y = y + torch.stack([minus, plus], dim=1)",
        "tests/nn/test_edge_frames.py",
    ),
    (
        "molequi/nn/attention.py",
        "torch.tanh(logit / LARGEST)) * envelope[:, None]",
        "torch.tanh(logit / LARGEST))",
        "tests/models/test_equiformer.py",
    ),
    (
        "molequi/nn/norms.py",
        "self.eps + square",
        "square",
        "tests/nn/test_norms_and_sphere.py",
    ),
    (
        "molequi/nn/sphere.py",
        "sphere.transforms(l_max, l_max, 2)",
        "sphere.transforms(l_max, l_max, 1)",
        "tests/nn/test_norms_and_sphere.py",
    ),
]


def tested(tests: str, mutation: tuple[str, str, str] | None = None) -> bool:
    """Whether these tests pass in a copy of the project, broken or as it is."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(
            ROOT,
            copy,
            ignore=shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info", "__pycache__"),
        )
        if mutation:
            file, old, new = mutation
            text = (copy / file).read_text(encoding="utf-8")
            if old not in text:
                raise SystemExit(f"{file}: the line to break is not there any more: {old}")
            (copy / file).write_text(text.replace(old, new), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(copy)}
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", *tests.split()],
            cwd=copy,
            env=environment,
            capture_output=True,
        )
    if run.returncode not in (0, 1) or (
        run.returncode and not mutation
    ):  # the control: a test that fails anyway notices nothing
        raise SystemExit(f"pytest {tests}: exit status {run.returncode}\n{run.stdout.decode()[-2000:]}")
    return run.returncode == 0


def main() -> int:
    for tests in sorted({path for *_, tests in MUTATIONS for path in tests.split()}):
        tested(tests)
        print(f"sound    {tests}", flush=True)
    missed = 0
    for file, old, new, tests in MUTATIONS:
        noticed = not tested(tests, (file, old, new))
        missed += not noticed
        print(f"{'noticed' if noticed else 'MISSED '}  {file}: {old}  →  {new}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
