"""Models compiled ahead of time. That the program is right at other sizes is tested here; inductor itself takes minutes."""

import json

import pytest
import torch
from ase import Atoms

import molequi as mq
from molequi import engines
from molequi.engines import aot
from molequi.engines.evaluator import Evaluator
from molequi.errors import AccelerateError, ConfigError, DataError, ModelError

from .test_evaluator import silicon


def small(**options):
    torch.manual_seed(0)
    return mq.Model(mq.EGNN(elements=["Si", "O"], channels=4, layers=1, cutoff=3.0, **options))


def test_a_program_has_the_numbers_of_the_model_at_all_sizes(monkeypatch, tmp_path):
    packages = []

    def package(program, package_path, inductor_configs):
        packages.append((program, inductor_configs))
        return package_path

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: packages[0][0].module())
    net = small(inputs=mq.Inputs(charge=True))
    path = engines.export_aot(net, tmp_path / "m.pt2", silicon(), charge=1.0)
    said = json.loads(packages[0][1]["aot_inductor.metadata"]["molequi"])
    assert path.suffix == ".pt2"
    assert said["elements"] == ["O", "Si"] or said["elements"] == ["Si", "O"]
    assert said["inputs"][-1] == "charge" and said["cutoff"] == 3.0
    assert said["dtypes"]["edge_index"] == "int64" and said["dtypes"]["positions"] == "float64"
    assert said["layout"] == "contiguous"

    evaluator = Evaluator(net, charge=-2.0)  # a charge, a size and a cell that it has not seen
    larger = silicon().repeat((2, 3, 1))
    assert aot.compare(packages[0][0].module(), evaluator, [larger]) < 1e-12
    wrong = lambda *given: packages[0][0].module()(*given[:-1], given[-1] + 1)  # noqa: E731
    with pytest.raises(AccelerateError, match="differs from the model: energy of 12 atoms"):
        aot.compare(wrong, evaluator, [larger])


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"ends in \.pt2"):
        engines.export_aot(small(), tmp_path / "m.so", silicon())
    (tmp_path / "m.pt2").write_text("")
    with pytest.raises(ConfigError, match="this file exists"):
        engines.export_aot(small(), tmp_path / "m.pt2", silicon())
    with pytest.raises(AccelerateError, match="an ensemble: wanted a single model"):
        engines.export_aot(mq.Ensemble([small(), small()]), tmp_path / "e.pt2", silicon())

    far = Atoms("Si6", [[9.0 * k, 0, 0] for k in range(6)])
    for like, error, message in [
        (far, DataError, "no two atoms within the cutoff of 3 Å"),
        (Atoms(), DataError, "no atoms"),
        (Atoms("Fe"), ModelError, "Fe"),
    ]:
        with pytest.raises(error, match=message):
            engines.export_aot(small(), tmp_path / "n.pt2", like)

    class Branching(mq.EGNN):
        def forward(self, graph):
            return super().forward(graph if float(graph.pos.sum()) > 0 else graph.replace(pos=-graph.pos))

    net = mq.Model(Branching(elements=["Si", "O"], channels=4, layers=1, cutoff=3.0))
    with pytest.raises(AccelerateError, match="Branching cannot be compiled ahead of time"):
        engines.export_aot(net, tmp_path / "b.pt2", silicon())
