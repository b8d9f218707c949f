"""A table of molecules as it is, before anything is decided: separator, columns, cells as text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from molequi.errors import DataError
from molequi.readers.csv_cells import csv_table
from molequi.readers.decimal_commas import has_decimal_comma
from molequi.readers.files import check_file, open_text, readable
from molequi.readers.frames import DataFrame, as_frame, cell_text, frame_columns, frame_rows
from molequi.readers.molecule_files import MISSING

_LOOKED_AT = 50  # cells of a column that are read as SMILES
_FIRST_ROWS = 1000  # rows in which these cells are looked for, of tables of any length


@dataclass(frozen=True)
class Table:
    """The cells of a table.

    Parameters
    ----------
    path : Path
        The file.
    delimiter : str
        What separates the columns.
    columns : dict of str to tuple of str
        The cells of each column, without blanks around them.
    """

    path: Path
    delimiter: str
    columns: dict[str, tuple[str, ...]]

    @property
    def rows(self) -> int:
        """Number of rows below the header."""
        return len(next(iter(self.columns.values())))

    def known(self, column: str) -> list[str]:
        """The cells of a column that hold something.

        Parameters
        ----------
        column : str
            Name of the column.
        """
        return [cell for cell in self.columns[column] if cell.lower() not in MISSING]

    def numeric(self, column: str) -> bool:
        """Whether all cells of a column that hold something are numbers.

        Parameters
        ----------
        column : str
            Name of the column.
        """
        cells = self.known(column)
        return bool(cells) and all(map(is_number, cells))

    def decimal_comma(self, column: str) -> str:
        """The first number with a decimal comma, if all cells of a column are numbers with one or whole ones.

        Parameters
        ----------
        column : str
            Name of the column.

        Returns
        -------
        str
            Empty if the column has no decimal commas.
        """
        cells = self.known(column)
        comma = [cell for cell in cells if has_decimal_comma(cell)]
        whole = all(has_decimal_comma(cell) or is_number(cell) for cell in cells)
        return comma[0] if comma and whole else ""


def is_number(text: str) -> bool:
    """Whether a text is a number as Python reads it.

    Parameters
    ----------
    text : str
        The text.
    """
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_table(path: str | Path, rows: int | None = None) -> Table:
    """Read a table with a header; the separator is found.

    Parameters
    ----------
    path : str or Path
        A .csv, .tsv or .txt file, also compressed (.gz), separated by comma, semicolon, tab or ``|``.
    rows : int, optional
        Number of rows that are read; by default all.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        If there is no header, if two columns have one name, or if a row has another number of cells.
    """
    path = Path(path)
    check_file(path)
    with readable(path), open_text(path, "") as file:
        table = csv_table(path, file, lambda named: max(named, key=lambda mark: len(named[mark])))
        names, delimiter = table.names, table.delimiter
        _check_header(path, names)
        found = [cells for _, cells in islice(table.rows, rows)]
    if not found:
        raise DataError(f"{path}: no molecules below the names of the columns; wanted at least one")
    return Table(path, delimiter, {name: tuple(row[k] for row in found) for k, name in enumerate(names)})


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Raise DataError if the first line does not name the columns."""
    if not any(names):
        raise DataError(f"{path}: the first line is empty; wanted the names of the columns, SMILES,logS")
    if any(map(is_number, names)) and not any("smiles" in name.lower() for name in names):
        raise DataError(
            f"{path}: the first line is {', '.join(names)}, which are values; wanted the names of the "
            "columns there, such as SMILES,logS"
        )


def smiles_column(table: Table) -> str:
    """The column with the SMILES: by its name, else by its cells.

    Parameters
    ----------
    table : Table
        The table.

    Returns
    -------
    str
        Its name.

    Raises
    ------
    DataError
        If there is none, or if several could be meant.
    """
    named = [name for name in table.columns if name.lower() == "smiles"]
    named = named or [name for name in table.columns if "smiles" in name.lower()]
    found = named or [name for name in table.columns if _holds_smiles(table.known(name)[:_LOOKED_AT])]
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"{table.path}: no column of SMILES (columns: {', '.join(table.columns)}); name it: column=..., "
            "--column NAME"
        )
    raise DataError(
        f"{table.path}: {' and '.join(map(repr, found))} are columns of SMILES; say which: "
        f"column={found[0]!r}, --column {quoted(found[0])}"
    )


def find_smiles_column(molecules: str | Path | DataFrame, hint: str | None = None) -> str:
    """The column with the SMILES of a file or a DataFrame, by the rule of `smiles_column`.

    Parameters
    ----------
    molecules : str, Path or pandas.DataFrame
        The table. Only its first rows are looked at.
    hint : str, optional
        The column that another table of the same kind had. If there is one of this name, it is taken.

    Returns
    -------
    str
        Its name. Of a DataFrame without SMILES "ROMol", if it has such a column.

    Raises
    ------
    DataError
        If there is none, or if several could be meant.
    """
    frame = as_frame(molecules)
    if frame is None:
        table = read_table(molecules, _FIRST_ROWS)  # type: ignore[arg-type]
    else:
        names = frame_columns(frame)
        first = [cells for _, cells in frame_rows(frame.iloc[:_FIRST_ROWS])]
        columns = {name: tuple(cell_text(cells[name]) for cells in first) for name in names}
        table = Table(Path("DataFrame"), "", columns)
    if hint in table.columns:
        return hint
    try:
        return smiles_column(table)
    except DataError:
        if frame is not None and "ROMol" in table.columns:
            return "ROMol"
        raise


def _holds_smiles(cells: Sequence[str]) -> bool:
    """Whether most cells are SMILES of molecules with more than one atom."""
    from rdkit import Chem, rdBase

    if not cells or all(map(is_number, cells)):
        return False
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(cell) for cell in cells]
    good = [mol for mol in mols if mol is not None]
    return len(good) >= 0.8 * len(cells) and sum(mol.GetNumAtoms() > 1 for mol in good) >= 0.5 * len(cells)


def quoted(word: str) -> str:
    """A word as it is typed in a shell.

    Parameters
    ----------
    word : str
        The word.

    Examples
    --------
    >>> quoted("logS"), quoted("log S")
    ('logS', "'log S'")
    """
    import shlex

    return shlex.quote(word)


def scaffold_sizes(texts: Sequence[str]) -> list[int]:
    """Number of molecules with each Bemis-Murcko scaffold, the largest first.

    Molecules without rings have one scaffold, which is empty. What RDKit cannot read is left out.

    Parameters
    ----------
    texts : sequence of str
        SMILES, or records of SDF files.

    Examples
    --------
    >>> scaffold_sizes(["CCO", "CC", "c1ccccc1C", "no molecule"])
    [2, 1]
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    counts: Counter[str] = Counter()
    with rdBase.BlockLogs():
        for text in texts:
            mol = Chem.MolFromMolBlock(text) if "\n" in text else Chem.MolFromSmiles(text)
            if mol is not None and mol.GetNumAtoms():
                counts[MurckoScaffoldSmiles(mol=mol)] += 1
    return sorted(counts.values(), reverse=True)
