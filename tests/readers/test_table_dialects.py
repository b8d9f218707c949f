"""Tables as spreadsheets and chemical databases write them: each is read, or refused in one right sentence."""

import gzip

import pytest

import molequi as mq
from molequi.data.units import factor
from molequi.errors import DataError, DataWarning
from molequi.readers.tables import read_table

Q = mq.Quantity(name="logS")


def read(path, text, encoding="utf-8", **options):
    path.write_bytes(text.encode(encoding))
    return mq.read_smiles(path, **{"quantities": [Q], "optimize": None, **options})


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("smiles,logS\nCCO,1\nCC,2\n", "utf-16"),
        ("smiles;logS\nCCO;1\nCC;2\n", "utf-16-le"),
        ("smiles,logS\nCCO,1\nCC,2\n", "utf-32"),
        ("smiles,logS\nCCO,1\nCC,2\n", "utf-8-sig"),
        ("smiles,logS,,\nCCO,1,,\nCC,2,,\n", "utf-8"),
        ("smiles,logS\nCCO,1,,\nCC,2\n", "utf-8"),
        ("sep=;\nsmiles;logS\nCCO;1\nCC;2\n", "utf-8"),
        ('"sep=\t"\r\nsmiles\tlogS\r\nCCO\t1\r\nCC\t2\r\n', "utf-8"),
        ("sep=,\nsmiles,logS\nCCO,1\nCC,2\n", "utf-16"),
        ('smiles,logS,"note\n(mine, ""own"")"\nCCO,1,a\nCC,2,b\n', "utf-8"),
    ],
)
def test_dialects_that_are_read(tmp_path, text, encoding):
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    data = read(tmp_path / "a.csv", mark + text, encoding)
    assert data.values("logS").tolist() == [1, 2] and data.info["canonical"] == ("CCO", "CC")
    table = read_table(tmp_path / "a.csv")
    assert table.columns["smiles"] == ("CCO", "CC") and "" not in table.columns and table.rows == 2
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((mark + text).encode(encoding)))
    assert mq.read_smiles(tmp_path / "b.csv.gz", quantities=[Q]).values("logS").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "encoding", "sentence"),
    [
        ("smiles,IC50 (µM)\nCCO,2\n", "latin-1", "not text in UTF-8 .*iconv -f WINDOWS-1252 -t UTF-8"),
        (
            "smiles,logS,,\nCCO,1,,note\n",
            "utf-8",
            "row 0 .line 2.: 4 cells, 2 columns .*column without a name",
        ),
        ("smiles,logS,logS\nCCO,1,1\n", "utf-8", "two columns are called 'logS'"),
        ("smiles,logS\nCCO,#DIV/0!\n", "utf-8", "row 0 .line 2.: logS is '#DIV/0!'; wanted a number"),
        ("sep=;\nsmiles;logS\nCCO;1\nCC\n", "utf-8", "row 1 .line 4.: 1 cells, 2 columns"),
        ('smiles,logS,"a\nb"\nCCO,x,1\n', "utf-8", "row 0 .line 3.: logS is 'x'"),
    ],
)
def test_dialects_that_are_refused(tmp_path, text, encoding, sentence):
    with pytest.raises(DataError, match=sentence):
        read(tmp_path / "a.csv", text, encoding)


@pytest.mark.parametrize("cell", ["#N/A", "<NA>", "#NA", "-nan", "NULL", "n/a", ""])
def test_missing_cells(tmp_path, cell):
    data = read(tmp_path / "a.csv", f"smiles,logS\nCCO,{cell}\nCC,2\n", partial=["logS"])
    assert data.known("logS").tolist() == [False, True]
    assert read_table(tmp_path / "a.csv").known("logS") == ["2"]


def test_cxsmiles(tmp_path):
    """Stereo groups, radicals and coordinates of an extension, in tables and in .smi files."""
    with pytest.warns(DataWarning, match="1 of 2 molecules are mixtures of stereoisomers"):
        data = read(tmp_path / "a.csv", 'smiles,logS\n"C[C@H](O)F |&1:1|",1\nCC,2\n')
    assert data.info["canonical"][0] == "C[C@H](O)F"
    (tmp_path / "a.smi").write_text("CC |(0,0,;1.5,0,)| ethane\nC[CH2] |^1:1|\n")
    data = mq.read_smiles(tmp_path / "a.smi", optimize=None)
    assert data.info["name"] == ("ethane", None) and data[0].pos[:, 2].unique().numel() > 2, "no drawing"
    assert data[1].spin.item() == 2
    for text, why in (("*CC* |Sg:n:1,2::ht|", "dummy|polymer"), ("CC |&1|", "."), ("CC |", ".")):
        with pytest.raises(DataError, match=f"cannot be used:(.|\n)*({why})"):
            mq.read_smiles([text])


def test_own_columns_with_names_of_the_reader(tmp_path):
    with pytest.warns(
        DataWarning, match="in info those of the table are called molecule of the table, scaffold"
    ):
        data = read(tmp_path / "a.csv", "smiles,molecule,scaffold,logS\nc1ccccc1C,toluene,series A,1\n")
    assert data.info["molecule of the table"] == ("toluene",)
    assert data.info["scaffold of the table"] == ("series A",)
    assert data.info["molecule"] == (0,) and data.info["scaffold"] == ("c1ccccc1",)


def test_units_of_assays(tmp_path):
    assert factor("μM", "nM") == pytest.approx(1000) and factor("uM", "M") == pytest.approx(1e-6)
    assert factor("mol/L", "M") == pytest.approx(1) and factor("%", "1") == 0.01
    k = mq.Quantity(name="k", unit="nM")
    for header, options in (
        ("k (uM)", {}),
        ("k [μM]", {}),
        ("k (µM)", {}),
        ("k", {"units": {"k": "uM"}}),
        ("k (mol/L)", {"scale": 1e-6}),
    ):
        scale = options.pop("scale", 1)
        data = read(tmp_path / "a.csv", f"smiles,{header}\nCCO,{2 * scale}\n", quantities=[k], **options)
        assert data.values("k").item() == pytest.approx(2000)
    y = mq.Quantity(name="yield", unit="%")
    assert read(tmp_path / "a.csv", "smiles,yield (%)\nCCO,12\n", quantities=[y]).values("yield").item() == 12
    with pytest.raises(DataError, match="'kcal/mol' cannot be converted to 'nM'"):
        read(tmp_path / "a.csv", "smiles,k\nCCO,1\n", quantities=[k], units={"k": "kcal/mol"})
