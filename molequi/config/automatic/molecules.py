"""Choices for molecules: tables of SMILES, SDF files, and arrays without forces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from molequi.config.automatic.asked import (
    SPLIT,
    Asked,
    Plan,
    described,
    epochs_for,
    missing_target,
    new_name,
    scalar_quantity,
)
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.quantities import Quantity
from molequi.readers.decimal_commas import MINUS, check_decimal_commas, has_decimal_comma, number_hint
from molequi.readers.molecule_files import CSV, sdf_rows, suffix
from molequi.readers.tables import Table, is_number, quoted, read_table, scaffold_sizes, smiles_column

# Of an ensemble of three with the recipe `property`: about a minute for 300 molecules, and more for more.
STEPS, MOST_EPOCHS, BATCH, MEMBERS, MANY = 1500, 60, 16, 3, 5000
_LEAST = 20  # molecules
_ENOUGH = 200  # molecules of a validation set that tell which epoch is best
_MOST_CLASSES = 20
_SCAFFOLDS, _LARGEST = 10, 0.75  # fewest scaffolds, and largest share of one, for a split by scaffold
_IDENTIFIERS = ("id", "index", "no", "no.", "nr", "nr.", "#", "number", "cid", "row", "unnamed: 0")


def plan_table(path: str, asked: Asked) -> Plan:
    """Choose a run for a table of SMILES.

    Parameters
    ----------
    path, asked
        As in `molequi.config.automatic.choose.plan_of`.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        If the target is missing or is no column of numbers or classes.
    DataError
        If the table cannot be read.
    """
    if suffix(Path(path)) not in CSV:
        raise ConfigError(
            f"{path}: a list of SMILES has no labels; wanted a table ({', '.join(CSV)}) with the names of "
            "its columns in the first line, such as SMILES,logS"
        )
    asked.refuse("a table of molecules", "stress", "keys", "allow")
    table = read_table(path)
    column = asked.column or smiles_column(table)
    if column not in table.columns:
        raise ConfigError(f"{path}: no column {column!r}{did_you_mean(column, table.columns)}")
    data: dict[str, Any] = {"path": path, "column": column}
    notes = {"molecules": f"{table.rows} rows, separated by {table.delimiter!r}; SMILES in {column!r}"}
    return _plan("smiles", data, table, table.columns[column], asked, notes)


def plan_sdf(path: str, asked: Asked) -> Plan:
    """Choose a run for an SDF file.

    Parameters
    ----------
    path, asked
        As in `molequi.config.automatic.choose.plan_of`.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        If the target is missing or is no property with numbers or classes.
    DataError
        If the file cannot be read.
    """
    asked.refuse("an SDF file", "stress", "keys", "column", "allow")
    rows = list(sdf_rows(Path(path)))
    if not rows:
        raise DataError(f"{path}: no records in this file (it is empty)")
    names = dict.fromkeys(name for row in rows for name in row.columns if name != "name")
    cells = {name: tuple(row.columns.get(name, "") for row in rows) for name in names}
    flat = sum(_is_flat(row.text) for row in rows)
    data: dict[str, Any] = {"path": path} | ({"embed": True} if flat else {})
    geometry = f"{flat} without coordinates in space, which are made" if flat else "coordinates of the file"
    notes = {"molecules": f"{len(rows)} records of {path}; {geometry}"}
    # A table without a property has nothing to learn; the message of the missing target says so.
    table = Table(Path(path), "", cells or {"": ("",) * len(rows)})
    return _plan("sdf", data, table, [row.text for row in rows], asked, notes)


def _is_flat(record: str) -> bool:
    """Whether a record of an SDF file (V2000) has no coordinates in space."""
    heights = [line[20:30].strip() for line in record.splitlines()[4:] if line[30:34].strip().isalpha()]
    return bool(heights) and len(heights) > 3 and all(is_number(z) and float(z) == 0 for z in heights)


def _plan(
    reader: str,
    data: dict[str, Any],
    table: Table,
    texts: Sequence[str],
    asked: Asked,
    notes: dict[str, str],
) -> Plan:
    """The plan for a table of texts, from a file of SMILES or an SDF."""
    where = str(table.path)
    targets = _targets(table, str(data.get("column", "")), asked)
    asked.check_units(targets)
    predict: list[dict[str, Any]] = []
    keys: dict[str, str] = {}
    units: dict[str, str] = {}
    partial: list[str] = []
    learnt: list[str] = []
    for name in targets:
        q, unit, note = _quantity(table, name, asked)
        keys[q.name], learnt = name, [*learnt, note]
        if unit is not None:
            units[q.name] = unit
        if len(table.known(name)) < table.rows:
            partial.append(q.name)
        predict.append(described(q))
    data |= {"keys": {q: name for q, name in keys.items() if q != name}, "units": units, "partial": partial}
    data["quantities"] = predict
    if asked.skip:
        data["skip"] = True
    data = {name: value for name, value in data.items() if value not in ({}, [])}
    split, note = molecule_split(reader, texts, "canonical")
    data |= split | ({"labelled": True} if partial else {})
    train, more = training(table.rows, asked, where)
    notes |= {"target": "; ".join(learnt), "split": note} | more
    return Plan({reader: data}, predict, asked.recipe or "property", {}, train, notes)


def molecule_split(reader: str, texts: Sequence[str], column: str) -> tuple[dict[str, Any], str]:
    """The split by scaffold if there are enough scaffolds, else at random; and a note.

    Parameters
    ----------
    reader : str
        Name of the reader, for the note.
    texts : sequence of str
        SMILES or records of an SDF file.
    column : str
        The column that tells molecules apart; equal ones stay together.

    Returns
    -------
    dict
        Options beside those of the reader.
    str
        What was chosen and why.
    """
    sizes = scaffold_sizes(texts)
    share = ", ".join(f"{value:.0%} {part}" for part, value in SPLIT.items())
    if len(sizes) >= _SCAFFOLDS and sizes[0] <= _LARGEST * sum(sizes):
        note = (
            f"{share} by scaffold: errors are those for ring systems that the model has not seen; at random: "
            f"data.{reader}.by={column}"
        )
        return {"split": dict(SPLIT), "by": "scaffold"}, note
    few = (
        f"there are only {len(sizes)}" if len(sizes) < _SCAFFOLDS else f"one is that of {sizes[0]} molecules"
    )
    return {"split": dict(SPLIT), "by": column}, f"{share} at random, not by scaffold, of which {few}"


def training(molecules: int, asked: Asked, where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Options of the training and notes for so many molecules.

    Parameters
    ----------
    molecules : int
        Number of molecules.
    asked : Asked
        What the user says.
    where : str
        The file, for messages.

    Raises
    ------
    DataError
        For too few molecules.
    """
    if molecules < _LEAST:
        raise DataError(
            f"{where}: {molecules} molecules; wanted at least {_LEAST}, from which the parts for training, "
            "validation and test are drawn"
        )
    members = asked.members or (MEMBERS if molecules <= MANY else 1)
    epochs = epochs_for(int(SPLIT["train"] * molecules), BATCH, STEPS, MOST_EPOCHS)
    seed: int | list[int] = list(range(members)) if members > 1 else 0
    why = f"{members} models; their standard deviation, calibrated on the validation set, is the uncertainty"
    if members == 1:
        why = "1 model" + (f", because there are more than {MANY} molecules" if not asked.members else "")
        why += "; --members 3 gives uncertainties"
    notes = {"ensemble": why}
    chosen: dict[str, Any] = {"epochs": epochs, "batch_size": BATCH, "seed": seed}
    held_out = round(SPLIT["valid"] * molecules)
    if held_out < _ENOUGH:
        chosen["validation"] = {"keep": "last"}
        notes["weights"] = f"of the last epoch: which one is best cannot be told by {held_out} molecules"
    return chosen, notes


def _targets(table: Table, column: str, asked: Asked) -> list[str]:
    """The columns to learn. Raises ConfigError that lists what there is and what to type."""
    where = str(table.path)
    others = [name for name in table.columns if name not in (column, "")]
    if asked.target:
        return [_find(name, others, table, asked) for name in asked.target]
    numbers, classes = _learnable(table, others)
    if not numbers + classes:
        raise ConfigError(
            f"{where}: nothing to learn: no column of numbers (columns: {', '.join(table.columns) or 'none'})"
        )
    raise ConfigError(missing_target(where, "columns", numbers, classes, asked.command))


def _learnable(table: Table, others: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns of numbers, without those that number the rows, and the columns of classes."""
    numbers = [
        name
        for name in others
        if name.lower().replace("compound", "").replace("_", " ").strip() not in _IDENTIFIERS
        and (table.numeric(name) or table.decimal_comma(name))
    ]
    return numbers, [name for name in others if _classes(table, name) and name not in numbers]


def _find(name: str, columns: Sequence[str], table: Table, asked: Asked) -> str:
    """The column of a target. Raises ConfigError with the nearest name, or with what there is to learn."""
    where = str(table.path)
    if name in columns:
        return name
    same = [c for c in columns if c.lower() == name.lower()]
    if len(same) == 1:
        return same[0]
    said, near = f"{where}: no column {name!r} to learn", did_you_mean(name, columns)
    numbers, classes = _learnable(table, columns)
    if not near.startswith("; did") and not numbers + classes:
        raise ConfigError(
            f"{said}, and none of numbers or classes (columns: {', '.join(table.columns)}). Give the table "
            "with the labels, or predict for these molecules:\n"
            f"  molequi predict RUN {quoted(where)} predicted.csv"
        )
    if not near.startswith("; did"):
        one = quoted((numbers + classes)[0])
        near = f"; known: {', '.join(numbers + classes)}; type\n  molequi {asked.command} {quoted(where)}"
        near += f" --target {one}"
    raise ConfigError(f"{said}{near}")


def _classes(table: Table, name: str) -> list[str]:
    """Names of the classes of a column; empty if it holds numbers or texts of many kinds."""
    cells = table.known(name)
    kinds = sorted(set(cells))
    if set(kinds) == {"0", "1"}:
        return kinds
    # A minus of another character would make classes of numbers.
    plain = ["-" + cell[1:] if cell[:1] in MINUS else cell for cell in cells]
    text = bool(cells) and not any(is_number(cell) or has_decimal_comma(cell) for cell in plain)
    return kinds if text and 2 <= len(kinds) <= min(_MOST_CLASSES, len(cells) // 3) else []


def _quantity(table: Table, name: str, asked: Asked) -> tuple[Quantity, str | None, str]:
    """The quantity of a column, its unit in the file, and a note."""
    where = str(table.path)
    comma = table.decimal_comma(name)
    if comma:
        cells = dict(enumerate(table.columns[name]))
        check_decimal_commas(f"{where}: {name}", cells, table.delimiter)
    unit = asked.unit(name)
    classes = _classes(table, name)
    missing = table.rows - len(table.known(name))
    gap = f"; {missing} rows have none and are not learnt from" if missing else ""
    if classes:
        if unit is not None:
            raise ConfigError(f"{where}: {name!r} holds classes, which have no unit; leave --units out")
        q = Quantity(new_name(name), classes=classes)
        return q, None, f"{q.name}, one of {len(classes)} classes ({', '.join(classes)}){gap}"
    # A single cell that is none, such as a limit, is named when the labels are read.
    if not any(is_number(cell) or has_decimal_comma(cell) for cell in table.known(name)):
        found = next(iter(table.known(name)), "")
        raise DataError(
            f"{where}: {name!r} holds neither numbers nor classes (found {found!r}{number_hint(found)}); "
            "choose another column: --target NAME"
        )
    q, unit = scalar_quantity(name, unit, where)
    decimals = f", whose decimal commas are read as points ({comma})" if comma else ""
    what = f"{q.name}, {f'in {unit}' if unit else 'a pure number'}"
    return q, unit, f"{what}, from the column {name!r}{decimals}{gap}"
