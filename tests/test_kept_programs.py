"""Compiled programs on disk: their keys, files that are damaged or of others, and what a second process does."""

import copy
import dataclasses
import functools
import gc
import importlib
import os
import platform
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Mod

import molequi as mq
from molequi.compiled import kept, keys, machine_code
from molequi.compiled.costs import Cost, cost_of
from molequi.compiled.expressions import from_list, to_list
from molequi.compiled.functions import Sizes
from molequi.compiled.machine_code import to_bytes
from molequi.errors import AccelerateError
from molequi.features import Features
from molequi.graph import collate
from molequi.models import Backbone
from molequi.nn.radial import edges_of
from molequi.regular_graphs import regular
from molequi.util import cache_folder as folders

compiling = importlib.import_module("molequi.compiled.compiling")
accelerate = importlib.import_module("molequi.accelerate")
PROGRAM = kept.KeptProgram(
    {"ab/x.so": b"machine code", "c.so": bytes(range(256))},
    b"call",
    [["GreaterThan", "nodes", 32]],
    [],
    "PaiNN for training (float32)",
    61.0,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test alone."""
    monkeypatch.setenv("MOLEQUI_CACHE", str(tmp_path / "cache"))
    kept._tell_once.cache_clear()
    return tmp_path / "cache"


def shelf(key="k" * 64):
    return kept.Shelf(kept.programs_folder(), key)


def graph(atoms=5, seed=0, **fields):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.randn(atoms, 3, generator=generator, dtype=torch.float64)
    return mq.connect(mq.Graph.single(pos, [1, 6, 8, 1, 6][:atoms]).replace(**fields), 4.0)


def model(predict=("energy", "forces"), **options):
    torch.manual_seed(0)
    return mq.Model(
        mq.PaiNN(elements=["H", "C", "O"], **(dict(cutoff=4.0, channels=4, layers=1) | options)), predict
    )


# Expressions.

NODES, GRAPHS = sympy.symbols("s0 s1", integer=True, positive=True)


@pytest.mark.parametrize(
    "expression",
    [
        NODES + 4 > 32,
        sympy.Le(NODES, 4096),
        sympy.Ne(Mod(NODES * GRAPHS, 8), 0),
        sympy.Eq(FloorDiv(NODES, 16), 3),
        sympy.And(NODES > 3, sympy.Or(GRAPHS < 2, sympy.Not(sympy.Eq(NODES, GRAPHS)))),
        NODES**2 * sympy.Rational(1, 2) >= 7 * GRAPHS - NODES,
        sympy.true,
    ],
    ids=str,
)
def test_expressions_have_the_same_values_after_reading(expression):
    written = to_list(expression, {NODES: "nodes", GRAPHS: "graphs"})
    read = Sizes.from_lists([written])
    for nodes in (1, 3, 17, 28, 29, 48, 4096, 4097):
        for graphs in (1, 2, 9):
            wanted = bool(expression.subs({NODES: nodes, GRAPHS: graphs}))
            assert read.of(nodes, graphs) == (wanted,)


def test_expressions_that_are_not_known():
    with pytest.raises(ValueError, match="sin is not known"):
        to_list(sympy.sin(NODES) > 0, {NODES: "nodes"})
    with pytest.raises(ValueError, match="s1"):
        to_list(GRAPHS > 3, {NODES: "nodes"})
    for text in ("__import__('os').getcwd()", ["eval", "1"], ["Symbol", "x"], None, [], 1.5):
        with pytest.raises(ValueError, match="is no expression"):
            from_list(text, {"nodes": NODES})


# Keys.


class Own(Backbone):
    """Somebody's own backbone."""

    group = "O(n)"

    def __init__(self, *, elements, cutoff=4.0):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": 2}
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.function = torch.tanh

    def forward(self, graph):
        edges = edges_of(graph, self.cutoff, self.weight.dtype)
        near = edges.sum(edges.envelope)
        return Features(
            blocks={"0e": (near[:, None] * self.weight)[:, :, None]}, coordination=edges.coordination
        )


def key(model, structures=None, degree=6, create_graph=False):
    padded = regular(graph() if structures is None else structures, nodes=1, degree=degree)
    return keys.program_key(model, padded, create_graph)


def test_the_same_model_has_the_same_key_whatever_its_weights():
    first, other = model(), model()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    assert key(first) == key(other) == key(copy.deepcopy(first)) == key(first, graph(4, seed=3))
    assert key(first) == key(first, collate([graph(), graph(3)]))
    other.requires_grad_(False)  # averaged weights, which are evaluated
    assert key(first) == key(other) and key(first, create_graph=True) != key(other, create_graph=True)


def test_everything_else_changes_the_key(monkeypatch):
    found = [key(model())]
    for predict, options in (
        (["energy"], {}),
        (["gap"], {}),
        (["energy", "forces"], {"channels": 6}),
        (["energy", "forces"], {"cutoff": 4.5}),
        (["energy", "forces"], {"layers": 2}),
    ):
        found.append(key(model(predict, **options)))
    found += [key(model(), degree=8), key(model(), create_graph=True), key(model().double())]
    found += [key(model().eval()), key(model(), graph(charge=torch.zeros(1)))]
    one_way = graph()
    found.append(key(model(), one_way.replace(edge_index=one_way.edge_index[:, 1:])))  # without reverse edges
    changed = model()
    changed.backbone.basis_of_another_day = 3
    found.append(key(changed))
    changed = model()
    changed.backbone.epsilon = functools.partial(torch.add, alpha=2)
    found.append(key(changed))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    found.append(key(model()))
    for name in ("_sources", "_processor", "_compiler"):
        with monkeypatch.context() as patch:
            patch.setattr(keys, name, lambda: "another")
            keys._environment.cache_clear()
            found.append(key(model()))
        keys._environment.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        keys._environment.cache_clear()
        found.append(key(model()))
    keys._environment.cache_clear()
    assert None not in found and len(set(found)) == len(found)


def test_the_code_of_an_own_backbone_is_part_of_its_key(monkeypatch):
    own = mq.Model(Own(elements=["H", "C", "O"]), ["energy"])
    before, forward = key(own), Own.forward

    def other(self, graph):
        out = forward(self, graph)
        return out.replace(blocks={"0e": out.blocks["0e"] * 2})

    assert before is not None
    monkeypatch.setattr(Own, "forward", other)
    assert key(own) != before
    monkeypatch.undo()
    assert key(own) == before
    own.backbone.function = torch.sigmoid
    assert key(own) != before
    own.backbone.function = lambda x: x + 1
    first = key(own)
    own.backbone.function = lambda x: x + 2
    assert len({first, key(own), None}) == 3


def test_settings_that_cannot_be_described_have_no_key(tmp_path):
    own = model()
    with open(tmp_path / "file", "w") as file:
        own.backbone.file = file
        assert key(own) is None
        assert kept.shelf_of(own, regular(graph(), nodes=1, degree=6), False) is None


def test_another_process_finds_the_same_key():
    code = (
        "import torch, molequi as mq\n"
        "from molequi.compiled.keys import program_key\n"
        "from molequi.regular_graphs import regular\n"
        "model = mq.Model(mq.NequIP(elements=['O', 'H'], cutoff=4.0, channels=4), ['energy', 'forces'])\n"
        "graph = mq.connect(mq.Graph.single([[0.0, 0, 0], [1.0, 0, 0]], ['O', 'H']), 4.0)\n"
        "print(program_key(model, regular(graph, nodes=1, degree=4), True))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and len(found.pop().strip()) == 64


# Files.


def test_a_program_is_read_as_it_was_written(cache, capfd):
    assert shelf().read() is None
    shelf().write(lambda: PROGRAM)
    assert shelf().read() == PROGRAM
    assert [path.name for path in (cache / "programs").iterdir()] == [f"{'k' * 64}.program"]
    assert (cache / "programs").stat().st_mode & 0o077 == 0 and shelf().path.stat().st_mode & 0o077 == 0
    assert kept.known_seconds("PaiNN for training (float32)") == 61.0
    assert kept.known_seconds("PaiNN for evaluation (float32)") is None
    assert capfd.readouterr().err == ""


# JSON that is no header of a program.
HEADERS = ("[1]", "3", "null", '{"__metadata__":[1]}', '{"__metadata__":"abcdef"}', '{"__metadata__":null}')


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "text", "format", *HEADERS])
def test_a_damaged_program_is_removed_with_a_word(damage, capfd, monkeypatch):
    shelf().write(lambda: PROGRAM)
    content = bytearray(shelf().path.read_bytes())
    if damage == "format":
        monkeypatch.setattr(kept, "FORMAT", kept.FORMAT + 1)
    elif damage == "bit":
        content[-3] ^= 1
    elif damage in HEADERS:
        content = len(damage).to_bytes(8, "little") + damage.encode()
    else:
        content = {"empty": b"", "cut": content[:-10], "text": b"<html>not a program</html>"}[damage]
    shelf().path.write_bytes(content)
    assert shelf().read() is None and not shelf().path.exists()
    told = capfd.readouterr().err
    assert ".program: not used (" in told and "it is removed and made again" in told
    assert kept.known_seconds(PROGRAM.what) is None


def test_every_bit_counts():
    """Whatever part of a file is damaged, the program is not used."""
    shelf().write(lambda: PROGRAM)
    content = shelf().path.read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 4
        shelf().path.write_bytes(damaged)
        found = shelf().read()
        assert found is None or found == PROGRAM  # a space of the description may become another


def test_a_program_of_another_key_is_not_used(capfd):
    shelf().write(lambda: PROGRAM)
    shelf().path.rename(shelf("l" * 64).path)
    assert shelf("l" * 64).read() is None
    assert "of another format or key" in capfd.readouterr().err


def test_programs_that_others_can_write_are_not_used(cache, capfd):
    shelf().write(lambda: PROGRAM)
    shelf().path.chmod(0o666)
    assert shelf().read() is None
    assert "others can write to it" in capfd.readouterr().err
    (cache / "programs").chmod(0o770)
    assert kept.programs_folder() is None
    assert (
        f"compiled programs are not kept on disk: others can write to {cache}/programs; "
        f"type: chmod go-w {cache}/programs" in capfd.readouterr().err
    )
    assert kept.programs_folder() is None and capfd.readouterr().err == ""  # once
    (cache / "programs").chmod(0o700)
    cache.chmod(0o777)
    assert kept.programs_folder() is None
    assert f"type: chmod go-w {cache}\n" in capfd.readouterr().err
    cache.chmod(0o1777)  # as /tmp: others cannot rename what is there
    assert kept.programs_folder() == cache / "programs"


def test_a_folder_of_another_user_is_not_used(cache, monkeypatch):
    kept.programs_folder()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "belongs to another user; set MOLEQUI_CACHE to a folder of your own" in folders.not_private(cache)


def test_no_folder_for_programs_says_why(cache, capfd, monkeypatch):
    cache.write_text("a file")
    assert kept.programs_folder() is None
    assert "set MOLEQUI_CACHE to another folder" in capfd.readouterr().err


def test_a_full_disk_is_reported_and_nothing_is_left(cache, capfd, monkeypatch):
    shelf().write(lambda: PROGRAM)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    shelf().write(lambda: PROGRAM)
    assert "used but not kept on disk (AccelerateError: " in capfd.readouterr().err
    assert len([*(cache / "programs").iterdir()]) == 1 and shelf().read() == PROGRAM


def test_what_torch_cannot_serialize_is_not_kept(capfd):
    shelf().write(lambda: kept.KeptProgram({}, to_bytes(lambda *_: []), [], (), "", 1.0))
    told = capfd.readouterr().err
    assert "the compiled program is used but not kept on disk (ValueError: torch cannot serialize it)" in told
    assert shelf().read() is None


def test_the_programs_that_were_not_used_for_longest_make_room(monkeypatch):
    for age, name in enumerate("abc"):
        shelf(name).write(lambda: PROGRAM)
        os.utime(shelf(name).path, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(kept, "LARGEST", 3 * shelf("a").path.stat().st_size)
    assert shelf("c").read() == PROGRAM  # now it is the one that was used last
    shelf("d").write(lambda: PROGRAM)
    assert [name for name in "abcd" if shelf(name).path.exists()] == ["a", "c", "d"]


def test_the_folder_is_that_of_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("MOLEQUI_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert folders.cache_folder() == tmp_path / ".cache" / "molequi"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert folders.cache_folder() == tmp_path / "x" / "molequi"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert folders.cache_folder() == tmp_path / "Library" / "Caches" / "molequi"
    monkeypatch.setenv("MOLEQUI_CACHE", "~/mine")
    assert folders.cache_folder() == tmp_path / "mine"


# Costs.


def test_costs_are_those_of_this_machine_if_there_are_any():
    structures = graph()
    default = cost_of(model(), structures, 6)
    assert default.gain > 1.2 and 30 < default.seconds < 200
    shelf().write(lambda: PROGRAM)
    known = cost_of(model(), structures, 6)
    assert known.seconds != default.seconds and known.gain == default.gain
    found = kept.shelf_of(model().train(), regular(structures, nodes=1, degree=6), True)
    found.write(lambda: PROGRAM)  # now this very program is on disk
    assert cost_of(model(), structures, 6).seconds < known.seconds - 50
    assert cost_of(mq.Model(Own(elements=["H", "C", "O"]), ["energy"]), structures, 6).seconds > 30


def test_what_compilation_saves():
    cost = Cost(seconds=60.0, gain=3.0)
    assert cost.saved(cost.worthwhile) == pytest.approx(cost.seconds) and cost.saved(30.0) == pytest.approx(
        20.0
    )


# All the way.


def test_an_empty_library_is_named_and_removed(monkeypatch, tmp_path):
    program, library = importlib.import_module("molequi.accelerate"), tmp_path / "cabc.so"
    library.touch()

    def failing(traced, inputs):
        raise ImportError(f"{library}: file too short")

    monkeypatch.setattr(program, "BACKEND", failing)
    with pytest.raises(
        AccelerateError, match="cabc.so was empty.* it is removed now, so start the same command"
    ):
        mq.accelerate(model()).eval()(graph())
    assert not library.exists()


def test_garbage_is_collected_rarely_while_compiling():
    before = gc.get_threshold()
    with pytest.raises(ValueError, match="inside"), machine_code.rare_collections():
        assert gc.get_threshold()[0] > 10 * before[0]
        raise ValueError("inside")
    assert gc.get_threshold() == before
    gc.set_threshold(0)
    try:
        with machine_code.rare_collections():
            assert gc.get_threshold()[0] == 0  # this process collects nothing
    finally:
        gc.set_threshold(*before)


def patched():
    """What is changed in torch, and whether a setting is."""
    from torch._inductor import config, cpp_builder, cpu_vec_isa, sizevars
    from torch._inductor.codegen import common

    return [
        sizevars.sympy,
        common.DtypePropagationOpsHandler,
        cpp_builder._get_optimization_cflags,
        cpu_vec_isa.VecISA.check_build,
        config.aot_inductor.enable_line_tables,
    ]


def test_torch_is_as_before_after_compiling():
    before = patched()
    with pytest.raises(ValueError, match="inside"), machine_code._in_less_time():
        inside = patched()
        assert all(now is not then for now, then in zip(inside, before))
        with machine_code._in_less_time():
            pass
        assert all(now is then for now, then in zip(patched(), inside))
        raise ValueError("inside")
    assert all(now is then for now, then in zip(patched(), before))


def test_threads_change_torch_one_after_the_other():
    before, entered = patched(), threading.Event()

    def other():
        with machine_code._in_less_time():
            entered.set()

    thread = threading.Thread(target=other)
    with machine_code._in_less_time():
        thread.start()
        assert not entered.wait(0.2)
    thread.join(10)
    assert entered.is_set() and all(now is then for now, then in zip(patched(), before))


def test_another_torch_without_what_is_changed(monkeypatch):
    """Nothing is changed then, and nothing fails."""
    from torch._inductor import cpp_builder, sizevars
    from torch._inductor.codegen import common

    monkeypatch.setitem(sys.modules, "torch._inductor.cpu_vec_isa", None)  # cannot be imported
    monkeypatch.delattr("torch._inductor.cpu_vec_isa")
    monkeypatch.delattr(common, "DtypePropagationOpsHandler")
    monkeypatch.delattr(cpp_builder, "_get_optimization_cflags")
    monkeypatch.delattr(sizevars, "sympy")
    with machine_code._in_less_time():
        assert not hasattr(common, "DtypePropagationOpsHandler")


@pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64",
    reason="needs a C++ compiler (Debian: apt-get install g++) for x86_64",
)
def test_flags_of_vector_instructions_are_tried_without_headers(monkeypatch):
    """What the compiler takes is the same as with torch's own program, which includes its headers."""
    from torch._inductor import codecache
    from torch._inductor.cpu_vec_isa import VecAVX2, VecISA

    seen, write = [], codecache.write
    monkeypatch.setattr(
        codecache, "write", lambda code, *args, **options: seen.append(code) or write(code, *args, **options)
    )
    good, bad = VecAVX2(), VecAVX2()
    bad._arch_flags = "-mno-such-instructions"
    with machine_code.compiler_folder(), machine_code._in_less_time():
        assert good.check_build(VecISA._avx_code) and not bad.check_build(VecISA._avx_code)
        assert not any("#include" in code for code in seen) and len(seen) == 2
        assert not good.check_build("no C++")  # other programs are compiled as they are
    assert seen[-1] == "no C++"


def test_tables_are_kept_with_their_types():
    tables = [torch.arange(3), torch.rand(2, 3, dtype=torch.float64), torch.tensor(0.5)]
    shelf().write(lambda: dataclasses.replace(PROGRAM, constants=tables))
    found = shelf().read().constants
    assert [one.dtype for one in found] == [one.dtype for one in tables]
    assert all(torch.equal(*pair) for pair in zip(found, tables, strict=True))
    content = shelf().path.read_bytes()
    assert (
        content.count(b'"dtype":"F64","shape":[2,3]') == 1
    )  # as another shape of the same bytes it is refused
    shelf().path.write_bytes(content.replace(b'"dtype":"F64","shape":[2,3]', b'"dtype":"F64","shape":[3,2]'))
    assert shelf().read() is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (Debian: apt-get install g++)")
def test_another_process_loads_a_program_with_tables():
    """Coefficients of spherical harmonics are arguments of the program: as constants inside, they crashed the second process.

    It compiles nothing: with other settings than those of the first process torch would do so without a word.
    """
    code = (
        "import sys, torch, molequi as mq\n"
        "from torch._inductor.cpp_builder import CppBuilder\n"
        "build = CppBuilder.build\n"
        "def only_headers(self):\n"
        "    assert not self.get_target_file_path().endswith('.main.so')\n"
        "    build(self)\n"
        "if sys.argv[1] == 'second':\n"
        "    CppBuilder.build = only_headers\n"
        "torch.manual_seed(0)\n"
        "backbone = mq.GauntACE(elements=['O', 'H'], cutoff=4.0, channels=2, layers=1, l_max=2)\n"
        "model = mq.Model(backbone, ['gap']).eval()\n"
        "water = mq.Graph.single([[0.0, 0, 0], [1.0, 0, 0], [-0.3, 0.9, 0]], ['O', 'H', 'H'])\n"
        "graph = mq.connect(water, 4.0)\n"
        "print(float(model(graph)['gap']), float(mq.accelerate(model)(graph)['gap']))\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code, process], capture_output=True, text=True, check=True)
        for process in ("first", "second")
    ]
    assert "compiling GauntACE for evaluation" in runs[0].stderr
    assert (
        "loading the compiled GauntACE for evaluation" in runs[1].stderr and "compiling" not in runs[1].stderr
    )
    for run in runs:
        plain, compiled = map(float, run.stdout.split())
        assert compiled == pytest.approx(plain, rel=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (Debian: apt-get install g++)")
def test_a_program_on_disk_is_loaded_compared_and_made_again_if_it_is_wrong(cache, capfd, monkeypatch):
    """Another process is a new program here. One that is damaged, or that computes something else, is removed and compiled again."""
    structures = collate([graph(), graph(4, seed=1)])
    first = mq.accelerate(model(["gap"])).eval()
    wanted = first(structures)["gap"]
    told = capfd.readouterr().err
    assert told.count("compiling PaiNN for evaluation") == 1
    (file,) = (cache / "programs").iterdir()
    second = mq.accelerate(model(["gap"])).eval()
    assert second.program is not first.program and torch.equal(second(structures)["gap"], wanted)
    told = capfd.readouterr().err
    assert "loading the compiled PaiNN for evaluation" in told and "differs from the plain model by" in told
    (function,) = (f for fs in second.program.functions.values() for f in fs.values())
    (original,) = (f for fs in first.program.functions.values() for f in fs.values())
    assert len(function.sizes.assumed) == len(original.sizes.assumed)
    for nodes in (5, 28, 29, 4096, 4097):
        assert function.sizes.of(nodes, 3) == original.sizes.of(nodes, 3)
    big = collate([graph(5, seed=k) for k in range(12)])
    torch.testing.assert_close(second(big)["gap"], model(["gap"]).eval()(big)["gap"])

    def traced(*_):
        raise AccelerateError("it is compiled again")

    monkeypatch.setattr(compiling, "trace", traced)
    # The program under the key of a model with another cutoff, which the key would have told apart.
    shelf("w" * 64).write(kept.Shelf(file.parent, file.stem).read)
    monkeypatch.setattr(kept, "program_key", lambda *_: "w" * 64)
    wrong = mq.accelerate(model(["gap"], cutoff=2.0)).eval()
    with pytest.raises(AccelerateError, match="it is compiled again"):
        wrong(structures)
    assert "it cannot be used here and is compiled again" in capfd.readouterr().err
    assert not shelf("w" * 64).path.exists() and file.exists()


def test_a_wrong_program_for_training_is_made_again(capfd, monkeypatch):
    """The gradients of both are compared with those of the plain model, each with its own plain outputs."""

    class Place:
        content, removed = None, 0

        def read(self):
            return self.content

        def remove(self):
            Place.removed += 1

    def eager(traced, inputs):
        return traced

    monkeypatch.setattr(compiling, "inductor", eager)
    monkeypatch.setattr(accelerate, "BACKEND", eager)
    monkeypatch.setattr(compiling, "shelf_of", lambda *_: Place())
    structures = collate([graph(), graph(4, seed=1)])
    first = mq.accelerate(model(["gap"])).train()
    wanted = first(structures)["gap"]
    (right,) = (f for fs in first.program.functions.values() for f in fs.values())
    Place.content = SimpleNamespace(files={}, call=b"", assumed=[], constants=right.constants)
    monkeypatch.setattr(
        compiling, "from_bytes", lambda _: lambda *values: [2 * out for out in right.call(*values)]
    )
    second = mq.accelerate(model(["gap"])).train()
    found = second(structures)["gap"]
    assert torch.equal(found, wanted) and Place.removed == 1
    found.sum().backward()
    told = capfd.readouterr().err
    assert "it cannot be used here and is compiled again" in told and told.count("compiling PaiNN") == 2
