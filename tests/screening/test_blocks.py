"""Blocks: of any size they hold the records of the file, each once and with its place; changes are found."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from molequi.errors import ConfigError, DataError, DataWarning
from molequi.readers.blocks import kind_of, read_block
from molequi.readers.extxyz import iterate, scan
from molequi.readers.molecule_files import SDF, sdf_rows, smiles_rows, suffix
from molequi.screening.plan import plan


def cut(paths, size):
    return plan(paths, size, column=None, hint=None, progress=False)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_blocks_hold_the_records_of_each_kind_of_file(files, size):
    for path in files:
        [source], blocks = cut([path], size)
        found = [record for block in blocks for record in read_block(source, block, Path())]
        assert [block.count for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert [block.first for block in blocks] == list(range(0, source.records, size))
        if source.kind == "xyz":
            starts, _ = scan(path)
            wanted = list(iterate(path, starts, range(len(starts))))
            assert [(raw.number, raw.line) for raw in found] == [(f.index, f.line) for f in wanted]
            for raw, frame in zip(found, wanted, strict=True):
                numbers = [line.split()[1:4] for line in raw.lines[2:]]
                np.testing.assert_array_equal(np.array(numbers, dtype=float), frame.atoms.positions)
        else:
            wanted = list(sdf_rows(path) if suffix(path) in SDF else smiles_rows(path))
            assert found == wanted and len(wanted) > 3


def test_blocks_of_several_files_are_numbered_on(files):
    paths = [path for path in files if kind_of(path) != "xyz"]
    sources, blocks = cut(paths, 2)
    assert [block.number for block in blocks] == list(range(len(blocks)))
    numbers = [block.offset + k for block in blocks for k in range(block.count)]
    assert numbers == list(range(sum(source.records for source in sources)))
    others, _ = cut(paths, 100)
    assert [source.sha256 for source in others] == [source.sha256 for source in sources]
    assert sources[0].sha256 == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert sources[0].sha256 == sources[3].sha256 != sources[1].sha256  # the same content, compressed


def test_a_file_that_changes_is_found(smiles):
    [source], blocks = cut([smiles], 3)
    smiles.write_text(smiles.read_text().replace("O\n", "N\n"))
    assert len(read_block(source, blocks[0], Path())) == 3
    with pytest.raises(DataError, match=r"changed since the screening began .* resume='restart'"):
        read_block(source, blocks[-1], Path())


def test_what_is_no_file_of_records_is_refused(tmp_path, smiles, frames):
    with pytest.raises(ConfigError, match=r"(?s)frames.traj: .*\.extxyz.*ase convert"):
        kind_of(Path("frames.traj"))
    with pytest.raises(ConfigError, match="structures .* and molecules .* a folder of its own"):
        cut([smiles, frames], 3)
    (tmp_path / "empty.smi").write_text("\n")
    with pytest.raises(DataError, match="nothing to predict in this file"):
        cut([tmp_path / "empty.smi"], 3)
    (tmp_path / "wide.smi").write_text("CCO\n", encoding="utf-16")
    with pytest.raises(DataError, match="(?s)UTF-16.*iconv"):
        cut([tmp_path / "wide.smi"], 3)
    (tmp_path / "cut.xyz").write_text(frames.read_text()[:-100])
    with pytest.raises(DataError, match="frame 22 .*truncated"):
        cut([tmp_path / "cut.xyz"], 3)
    (tmp_path / "end.xyz").write_text(frames.read_text()[:-3])
    with pytest.warns(DataWarning, match="the last line does not end"):
        cut([tmp_path / "end.xyz"], 3)
    (tmp_path / "cells.csv").write_text("id,smiles\n1,C\n2,C,3\n")
    with pytest.raises(DataError, match=r"row 1 \(line 3\): 3 cells, 2 columns"):
        cut([tmp_path / "cells.csv"], 3)
