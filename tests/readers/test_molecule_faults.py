"""Bad molecules and tables of them: every one is told with its place, what was found and what to do. Named by their rows of the list of
faults."""

import pytest

from molequi.errors import ConfigError, DataError
from molequi.quantities import Quantity
from molequi.readers import read_sdf, read_smiles


def test_a39_invalid_smiles():
    bad = ["CC(", "C(C)(C)(C)(C)C", "", "c1cccc1", "CCO ethanol"]
    with pytest.raises(DataError) as error:
        read_smiles(["CCO", *bad, "CC>>CO"])
    told = str(error.value)
    assert told.startswith("list: 6 of 7 molecules cannot be used:")
    for row, text, reason in [
        (1, "'CC('", "syntax error while parsing: CC(; check for mistakes around position 3"),
        (2, "'C(C)(C)(C)(C)C'", "Explicit valence for atom # 0 C, 5, is greater than permitted"),
        (3, "", "empty"),
        (4, "'c1cccc1'", "Can't kekulize mol"),
        (5, "'CCO ethanol'", "syntax error"),
    ]:
        (line,) = [line for line in told.splitlines() if line.startswith(f"  row {row}")]
        assert text in line and reason in line
    assert "and 1 more" in told and "skip=True" in told
    with pytest.raises(DataError, match="row 1: 7 .int.; wanted a SMILES"):
        read_smiles(["C", 7])


def test_a40_molecules_that_do_not_embed():
    with pytest.raises(DataError) as error:
        read_smiles(["C[C@@]12C[C@@]1(C)C2", "C1#CC1"])
    told = str(error.value)
    assert (
        "row 0 'C[C@@]12C[C@@]1(C)C2': no geometry, neither by ETKDGv3 nor from random coordinates with"
        in told
    )
    assert "row 1 'C1#CC1': no geometry" in told and "attempts a conformer" in told


def test_a41_dummies_salts_metals():
    with pytest.raises(DataError) as error:
        read_smiles(["*CC", "[Na+].[Cl-]", "C[Zn]C"])
    told = str(error.value)
    for words in (
        "row 0 '*CC': atom 0 is a dummy",
        "row 1 '[Na+].[Cl-]': 2 fragments",
        "row 2 'C[Zn]C': Zn: no embedding",
    ):
        assert words in told


WATER = (
    "water\n  x{dim}\n\n  3  2  0  0  0  0  0  0  0  0999 V2000\n{atoms}  1  2  1  0\n  1  3  1  0\nM  END\n"
)
ATOMS = "{:10.4f}{:10.4f}{:10.4f} {}   0  0\n"


def water(*, dim="                 3D", places=((0, 0, 0.1), (0.96, 0, 0), (-0.24, 0.93, 0)), elements="OHH"):
    return WATER.format(dim=dim, atoms="".join(ATOMS.format(*p, e) for p, e in zip(places, elements)))


def test_a42_coordinates_that_are_none(tmp_path):
    flat = ((0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0))
    (tmp_path / "m.sdf").write_text(
        water()
        + "$$$$\n"
        + water(dim="                 2D", places=flat)
        + "$$$$\n"
        + water(places=((0, 0, 0),) * 3)
        + "$$$$\n"
    )
    with pytest.raises(DataError) as error:
        read_sdf(tmp_path / "m.sdf")
    told = str(error.value)
    assert "2 of 3 molecules" in told and "record 1 (line 12) 'water': coordinates in two dimensions" in told
    assert "record 2 (line 23) 'water': all atoms are at the same place" in told and "embed=True" in told
    data = read_sdf(tmp_path / "m.sdf", embed=True)
    assert data[0].pos[0].tolist() == [0, 0, 0.1]  # a geometry that is given stays
    for graph in data[1:]:
        assert float((graph.pos[0] - graph.pos[1]).norm()) == pytest.approx(0.97, abs=0.02)


def test_a43_bad_records(tmp_path):
    good = water() + "$$$$\n"
    path = tmp_path / "m.sdf"
    path.write_text(good + water(elements="QHH") + "$$$$\n" + "rubbish\n$$$$\n" + good + good[:120])
    with pytest.raises(DataError) as error:
        read_sdf(path)
    told = str(error.value)
    assert "3 of 5 molecules" in told
    for words in ("record 1 (line 12)", "record 2 (line 23)", "record 4 (line 36)", "looks truncated"):
        assert words in told
    path.write_text(good + water() + "> <energy>\n-1")
    with pytest.raises(
        DataError, match=r"record 1 \(line 12\) 'water': the file ends at line 23 within this record"
    ):
        read_sdf(path)
    path.write_text("")
    with pytest.raises(DataError, match="no records"):
        read_sdf(path)


@pytest.mark.parametrize(
    "text,options,words",
    [
        ("mol,gap\nC,1\n", {}, r"no column 'smiles'.*columns: mol, gap.*column="),
        (
            "smiles,gap\nC,1\nCC,low\n",
            {"units": {"gap": "eV"}},
            r"row 1 \(line 3\): gap is 'low'; wanted a number \(columns: gap\)",
        ),
        (
            "smiles;gap\nC;1\nCC;0,5\nCCC;0,25\nCCCC;0.5\n",
            {"units": {"gap": "eV"}},
            r"gap: numbers with commas and with points: row 1 is '0,5', row 3 is '0.5' .*the 1 of 4 rows .*: 3",
        ),
        ("smiles,gap\nC,1\nCC,inf\n", {"units": {"gap": "eV"}}, r"row 1 .*wanted finite numbers"),
        (
            "smiles,gap\nC,1\nCC,NaN\n",
            {"units": {"gap": "eV"}},
            r"row 1 .*'gap' is empty, or has no value for each structure \(missing in 1 of 2 structures\); .*partial=",
        ),
        ("smiles,band\nC,1\n", {"quantities": ["gap"]}, r"row 0 .*no 'gap'.*found 'band'"),
        (
            "smiles,id\nC,a\nCC,b\nCCC,a\n",
            {},
            r"row 2 \(line 4\): id 'a' is also in .*row 0 \(line 2\).*columns: id",
        ),
        ("smiles,id\nC,a\nCC,\n", {}, r"row 1 \(line 3\): nothing in the column 'id'"),
        ("smiles,code\nC,a\nCC,a\n", {"id": "code"}, r"code 'a' is also in"),
        ("smiles,code\nC,a\n", {"id": "cod"}, r"no column 'cod'; did you mean 'code'"),
        ("smiles,note\nC,a,b\n", {}, r"row 0 \(line 2\): 3 cells, 2 columns \(smiles, note\)"),
        ("smiles,note\nC,a\nCC", {}, r"row 1 \(line 3\): 1 cells, 2 columns"),
        ("smiles,note,note\nC,a,b\n", {}, r"two columns are called 'note'"),
        ('smiles,note\nC,"a\n', {}, r"not a readable table"),
        ("smiles\n", {}, r"no molecules"),
    ],
)
def test_a44_tables(tmp_path, text, options, words):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=f"m.csv.*{words}"):  # before any geometry is made
        read_smiles(tmp_path / "m.csv", **options)


def test_a44_unreadable(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"smiles\n\xff\xfe\n")
    with pytest.raises(DataError, match="not text|are not text"):
        read_smiles(tmp_path / "m.csv")
    with pytest.raises(DataError, match="no such file; did you mean 'm.csv'"):
        read_smiles(tmp_path / "n.csv")


def test_a_pure_number_needs_no_unit(tmp_path):
    path = tmp_path / "solubility.csv"
    path.write_text("smiles;logS\nC;-1.5\nCC;-2\n")
    assert read_smiles(path, quantities=[Quantity("logS")]).values("logS").tolist() == [-1.5, -2.0]
    with pytest.raises(
        DataError, match=r"unit of logS.*'log\(mol/L\)'}; a pure number, such as a logarithm, is decl"
    ):
        read_smiles(path, quantities=[Quantity("logS", unit="log(mol/L)")])
    # A unit that cannot be converted is taken as it is where the data have the same one, and refused otherwise.
    own = Quantity("logS", unit="log(mol/L)")
    assert read_smiles(path, quantities=[own], units={"logS": "log(mol/L)"}).values("logS").tolist() == [
        -1.5,
        -2,
    ]
    with pytest.raises(
        DataError,
        match=r"units\['logS'\] is 'mol/L', and logS is declared in 'log\(mol/L\)', which is not a unit that can be "
        "converted; give the labels in .* or declare logS in 'mol/L'",
    ):
        read_smiles(path, quantities=[own], units={"logS": "mol/L"})
    with pytest.raises(
        DataError, match="'log.mol' is not known.*a pure number, such as a logarithm, has no unit"
    ):
        read_smiles(path, quantities=[Quantity("logS")], units={"logS": "log(mol/L)"})
    with pytest.raises(
        ConfigError,
        match=r"quantity 'logS' is not known.*\. Declare a new one: mq\.Quantity\('logS'.*in YAML",
    ):
        read_smiles(path, quantities=["logS"])


def test_unknown_options_of_readers(tmp_path):
    with pytest.raises(ConfigError, match=r"read_smiles\(delimiter=';'\): read_smiles has no such argument"):
        read_smiles(tmp_path / "x.csv", delimiter=";")
    with pytest.raises(ConfigError, match=r"read_smiles\(rejected='a.csv'\): now skip=True"):
        read_smiles(tmp_path / "x.csv", rejected="a.csv")
