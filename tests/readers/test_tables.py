"""Tables of molecules before anything is decided."""

import pytest

from molequi.errors import DataError
from molequi.readers import read_smiles
from molequi.readers.tables import read_table, smiles_column

ROWS = [("a 1", "CCO", "-0.5"), ("a 2", "c1ccccc1", "1.25"), ("a 3", "CC(=O)O", "")]


def write(folder, text, name="mine.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_separator_is_found(mark, tmp_path):
    text = "\n".join(mark.join(cells) for cells in [("Compound ID", "SMILES", "logS"), *ROWS])
    path = write(tmp_path, "\ufeff" + text + "\n\n")  # a byte-order mark and an empty line
    table = read_table(path)
    assert table.delimiter == mark and table.rows == 3
    assert list(table.columns) == ["Compound ID", "SMILES", "logS"]
    assert table.columns["logS"] == ("-0.5", "1.25", "") and table.known("logS") == ["-0.5", "1.25"]
    assert table.numeric("logS") and not table.numeric("SMILES") and smiles_column(table) == "SMILES"
    data = read_smiles(path, column="SMILES", index=":2")
    assert data.info["Compound ID"] == ("a 1", "a 2")


def test_the_column_of_smiles_by_name_and_by_content(tmp_path):
    assert smiles_column(read_table(write(tmp_path, "canonical_smiles,y\nCCO,1\n"))) == "canonical_smiles"
    by_content = "id,structure,name\nC1,CCO,ethanol\nC2,CCN,ethylamine\n"
    assert smiles_column(read_table(write(tmp_path, by_content))) == "structure"
    with pytest.raises(
        DataError, match=r"no column of SMILES \(columns: name, y\); name it: column=..., --column NAME"
    ):
        smiles_column(read_table(write(tmp_path, "name,y\nwater,1\n")))
    two = "in smiles,out smiles\nCCO,CC=O\n"
    with pytest.raises(
        DataError,
        match=r"'in smiles' and 'out smiles' are columns of SMILES.*column='in smiles', --column 'in smiles'",
    ):
        smiles_column(read_table(write(tmp_path, two)))


def test_decimal_commas_are_seen(tmp_path):
    table = read_table(write(tmp_path, "s;a;b;c\nC;-1,5;1.5;x,5\nCC;2;2;3,5\nCCC;1,25e2;;1,1\n"))
    assert table.decimal_comma("a") == "-1,5"
    assert table.decimal_comma("b") == "" and table.decimal_comma("c") == ""


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "CCO,-0.77\nCC,1.0\n",
            r"first line is CCO, -0.77, which are values; wanted the names of the columns",
        ),
        ("\n", "the first line is empty"),
        ("smiles,y\n", "no molecules below the names"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        ("smiles,y\nCCO\n", r"row 0 \(line 2\): 1 cells, 2 columns"),
        ('smiles,y\n"CCO,1\n', "not a readable table"),
    ],
)
def test_what_is_no_table(text, words, tmp_path):
    with pytest.raises(DataError, match=words):
        read_table(write(tmp_path, text))


def test_decimal_commas_are_read_where_they_mean_one_thing(tmp_path):
    units = {"units": {"gap": "eV"}}
    text = "smiles;gap;note\nC;1,5;a,b\nCC;2;1,5\nCCC;-,25e1;c\n"
    data = read_smiles(write(tmp_path, text), **units)
    assert data.values("gap").tolist() == [1.5, 2.0, -2.5]
    assert data.info["note"] == ("a,b", "1,5", "c")  # what is no label stays as it is written
    assert "'gap', decimal commas" in data.summary()
    # With commas between the columns they are in quotes.
    data = read_smiles(write(tmp_path, 'smiles,gap\nC,"1,25"\nCC,"2,5"\n'), **units)
    assert data.values("gap").tolist() == [1.25, 2.5]
    with pytest.raises(DataError, match=r"gap: three digits after each comma, such as '1,234' in row 0"):
        read_smiles(write(tmp_path, 'smiles,gap\nC,"1,234"\nCC,"2,500"\n'), **units)
    for cell, hint in (
        ("low", r" \("),
        ("<0,5", r"; it is a limit, no value \("),
        ("\u22122,067", r"; its minus is the character '\u2212' \(U\+2212\), write -2,067 \("),
    ):
        with pytest.raises(DataError, match=rf"row 1 \(line 3\): gap is '{cell}'; wanted a number{hint}"):
            read_smiles(write(tmp_path, f"smiles;gap\nC;1,5\nCC;{cell}\n"), **units)
