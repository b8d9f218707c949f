"""Files of torch are read as plain values: nothing that they name is imported or called."""

import contextlib
import io
import pickle
import resource
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import CheckpointError
from molequi.foreign.archive import Archive
from molequi.foreign.pickles import Record, plain, records


def read(path):
    with Archive(path) as archive:
        return archive.value()


def archive(path, data, storages=(), folder="model/", **options):
    """A zip as torch writes it, with any pickle."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr(f"{folder}data.pkl", data if isinstance(data, bytes) else pickle.dumps(data))
        for name, raw in storages:
            file.writestr(f"{folder}data/{name}", raw)
    return path


def test_plain_values_and_tensors_come_back(tmp_path):
    values = {
        "tensors": OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.randn(3, 4).T, c=torch.tensor(2)),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "array": np.arange(4, dtype=">f8").reshape(2, 2),
        "number": np.float32(1.5),
        "rest": [1, None, "text", (2.5, True), {"x"}, torch.Size([2]), torch.float16, torch.device("cpu")],
    }
    torch.save(values, tmp_path / "v.pt")
    found = plain(read(tmp_path / "v.pt"))
    assert list(found["tensors"]) == ["a", "b", "c"]
    for name, tensor in values["tensors"].items():
        assert torch.equal(found["tensors"][name], tensor)
    assert found["parameter"].tolist() == [1, 1] and found["half"].dtype == torch.bfloat16
    np.testing.assert_array_equal(found["array"], values["array"])
    assert found["number"] == 1.5
    assert found["rest"] == [1, None, "text", (2.5, True), {"x"}, (2,), torch.float16, "cpu"]


def test_tensors_that_share_numbers_are_cut_from_them(tmp_path):
    base = torch.arange(10.0)
    torch.save({"a": base[2:5], "b": base[::3]}, tmp_path / "v.pt")
    found = read(tmp_path / "v.pt")
    assert found["a"].tolist() == [2, 3, 4] and found["b"].tolist() == [0, 3, 6, 9]


class Own:
    def __init__(self):
        self.weight = torch.ones(2)


def test_objects_become_records(tmp_path):
    torch.save({"model": Own(), "linear": torch.nn.Linear(2, 1)}, tmp_path / "v.pt")
    found = read(tmp_path / "v.pt")
    assert isinstance(found["model"], Record) and found["model"].kind.endswith("test_archive.Own")
    assert found["model"].state["weight"].tolist() == [1, 1]
    assert found["linear"].state["_parameters"]["weight"].shape == (1, 2)
    assert {r.kind for r in records(found)} >= {"torch.nn.modules.linear.Linear"}


class Evil:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (exec, (f"from pathlib import Path; Path({self.path!r}).write_text('run')",))


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_run(tmp_path, protocol):
    target = tmp_path / "written"
    pickle.loads(pickle.dumps(Evil(target)))
    assert target.read_text() == "run"  # what makes this test one
    target.unlink()
    found = read(archive(tmp_path / "evil.pt", pickle.dumps({"x": Evil(target)}, protocol)))
    assert not target.exists() and found["x"].kind in ("builtins.exec", "__builtin__.exec")
    with pytest.raises(
        CheckpointError, match=r"a file of torch with objects of (builtins|__builtin__)\.exec, which is none"
    ):
        mq.convert(tmp_path / "evil.pt")


def tensor_of(size, shape, stride, offset=0, key="0"):
    """A pickle of one tensor with any numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, key, "cpu", size) if isinstance(value, Storage) else None

        def reducer_override(self, value):
            if isinstance(value, Tensor):
                numbers = (Storage(), offset, shape, stride, False, OrderedDict())
                return torch._utils._rebuild_tensor_v2, numbers
            return NotImplemented

    class Tensor:
        pass

    class Storage:
        pass

    file = io.BytesIO()
    Pickler(file).dump({"t": Tensor()})
    return file.getvalue()


@pytest.mark.parametrize(
    "data, raw, told",
    [
        (tensor_of(4, (2, 2), (2, 1)), b"\0" * 12, "12 bytes where 16 are declared"),
        (tensor_of(4, (2, 3), (3, 1)), b"\0" * 16, "needs more numbers than the 4 of its storage"),
        (tensor_of(4, (10**12,), (0,)), b"\0" * 16, "needs more numbers than the 4 of its storage"),
        (tensor_of(4, (2,), (1,), offset=3), b"\0" * 16, "needs more numbers than the 4 of its storage"),
        (tensor_of(4, (2, -1), (1, 1)), b"\0" * 16, "a tensor with shape"),
        (tensor_of(4, (4,), (1,), key="../../etc/passwd"), b"\0" * 16, "wanted a number"),
        (tensor_of(4, (4,), (1,), key="7"), b"\0" * 16, "data/7 is missing in the archive"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(tmp_path, data, raw, told):
    with pytest.raises(CheckpointError, match=told):
        read(archive(tmp_path / "v.pt", data, [("0", raw)]))


def test_compressed_members_are_refused(tmp_path):
    path = archive(tmp_path / "v.pt", b"\0" * 10**6, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed; torch.save does not write such files"):
        read(path)


def test_other_files(tmp_path):
    (tmp_path / "text.pth").write_text("no zip")
    with pytest.raises(CheckpointError, match=r"text.pth: no archive of torch \(File is not a zip file\)"):
        read(tmp_path / "text.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "nothing.pth")
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as file:
        file.writestr("a.txt", "x")
    with pytest.raises(CheckpointError, match="a zip without the data of torch.save; found a.txt"):
        read(tmp_path / "z.pth")
    for data in (b"", b"garbage", pickle.dumps([1])[:-1], b"\x80\x02cos\nsystem\n(S'ls'\nt"):
        with pytest.raises(CheckpointError, match=r"its pickle cannot be read \(\w+: "):
            read(archive(tmp_path / "v.pth", data))


def test_other_kinds_are_named(tmp_path):
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "v.pth")
    with pytest.raises(
        CheckpointError, match="a file of torch with the keys state_dict, epoch, which is none of the kinds"
    ):
        mq.convert(tmp_path / "v.pth")


def test_damaged_files_end_in_an_error_or_in_the_same_values(tmp_path):
    """Each byte of a small file in turn."""
    path = Path(__file__).parent / "sevennet_o3.pth"
    raw, random = path.read_bytes(), np.random.default_rng(0)
    for place in random.integers(0, len(raw), 150):
        hurt = bytearray(raw)
        hurt[place] ^= 1 << int(random.integers(8))
        (tmp_path / "v.pth").write_bytes(hurt)
        try:
            read(tmp_path / "v.pth")
        except CheckpointError:
            pass


def doubled(times, start=b"K\x01"):
    """A tuple of two equal tuples of two …, as a pickle of a few bytes."""
    return b"\x80\x02" + start + b"".join(b"q%cq%ch%c\x86" % (k, k, k) for k in range(times))


OF_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89NtR"


@pytest.mark.parametrize(
    "data",
    [
        doubled(60) + b".",  # 2^60 paths
        b"\x80\x02}" + doubled(60)[2:] + b"K\x01s.",  # as a key, whose hash would not end
        b"\x80\x02" + OF_TENSOR + b"}b.",  # attributes of a tensor
        b"\x80\x02c_codecs\nencode\n}b.",  # attributes of a function of this process
        b"\x80\x02]q\x00h\x00a.",  # a list that contains itself
        b"\x80\x02(lp0\n.",  # instructions that torch.save does not write
        b"\x80\x02(ios\nsystem\n.",
        b"\x80\x02\x8c\x02osX\x06\x00\x00\x00system\x93\x8c\x02ls\x85R\x85R.",  # a record is called
        b"\x80\x02" + b"(" * 1000 + b"t" * 1000 + b".",  # tuples within tuples
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nquint8\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ.",
        b"\x80\x02ctorch\nSize\n(" + b"X\x01\x00\x00\x00a" * 5 + b"t\x85R.",
        b"\x80\x02(" + OF_TENSOR * 100_000 + b"t.",  # many copies
    ],
)
def test_bombs_end_soon(tmp_path, data):
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    path = archive(tmp_path / "v.pth", data, [("0", b"\0" * 16)])
    with contextlib.suppress(CheckpointError):
        mq.convert(path)
        raise AssertionError("converted")
    assert time.process_time() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


def test_nothing_of_this_process_is_changed(tmp_path):
    for name in (
        b"_codecs\nencode",
        b"torch._utils\n_rebuild_tensor_v2",
        b"collections\nOrderedDict",
        b"torch\nSize",
    ):
        data = b"\x80\x02c" + name + b"\n}X\x01\x00\x00\x00aK\x01sb."
        with pytest.raises(CheckpointError, match="attributes of a _Function"):
            read(archive(tmp_path / "v.pth", data))
    modules = set(sys.modules)
    read(archive(tmp_path / "v.pth", b"\x80\x02ctorch\n_inductor\n."))
    assert set(sys.modules) == modules


def test_names_of_members_that_cannot_be_read(tmp_path):
    path = archive(tmp_path / "v.pth", [1])
    raw = path.read_bytes().replace(b"model/data.pkl", b"\xff\xfedel/data.pkl")
    flagged = bytearray(raw)
    for start in (raw.find(b"PK\x01\x02") + 8, raw.find(b"PK\x03\x04") + 6):
        flagged[start + 1] |= 8  # names are UTF-8
    path.write_bytes(flagged)
    with pytest.raises(CheckpointError, match="no archive of torch"):
        read(path)


def test_a_later_version_of_the_zip_format(tmp_path):
    path = archive(tmp_path / "v.pth", [1])
    raw = bytearray(path.read_bytes())
    raw[raw.find(b"PK\x01\x02") + 6] = 200  # version that is needed to read it
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"no archive of torch \(zip file version 20"):
        read(path)
