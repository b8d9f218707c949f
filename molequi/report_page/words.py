"""What the numbers of a run mean, in plain sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from molequi.data.dataset import Dataset
from molequi.inference.metrics import Errors, shown_units
from molequi.plotting import figure
from molequi.symmetry_report import SymmetryReport

Mark = Literal["good", "look", "bad"]

CHECKS = {
    "not zero": "The outputs are not zero, so that the other checks mean something.",
    "rotation": "The outputs rotate with the structure.",
    "reflection": "The outputs are right for the mirror image of a structure.",
    "translation": "The outputs do not depend on where the structure is.",
    "permutation": "The outputs do not depend on the order of the atoms.",
    "batch": "A structure has the same outputs alone and in a batch.",
    "lattice": "Crystals have the same outputs for every choice of the unit cell.",
    "features": "The internal features rotate as their irreps say.",
}
_GROUPS = {
    "O(3)": "all rotations and reflections",
    "SO(3)": "all rotations, but no reflections, so that mirror images may have different outputs",
    "O(2)": "all rotations and reflections of the plane",
    "SO(2)": "all rotations of the plane, but no reflections",
}


@dataclass(frozen=True)
class Finding:
    """A sentence about the model.

    Parameters
    ----------
    mark : {"good", "look", "bad"}
        Whether it is good, should be looked at, or is bad.
    text : str
        The sentence.
    """

    mark: Mark
    text: str


def findings(
    errors: Mapping[str, Errors], history: Sequence[Mapping[str, Any]], report: SymmetryReport | None
) -> list[Finding]:
    """The most important facts about a trained model.

    Parameters
    ----------
    errors : mapping of str to Errors
        Errors by part of the data.
    history : sequence of mapping
        The rows of the epochs.
    report : SymmetryReport or None
        The measured symmetry.
    """
    part = held_out(errors)
    over, under = _ratios(errors)
    found = [*_accuracy(part, errors), *_overfitting(over, under), *_shift(errors)]
    return [*found, _unfinished(history, more=bool(under) and not over), _symmetry(report)]


def held_out(parts: Mapping[str, Any]) -> str:
    """The part that says how good a model is: test, else valid, else the last one.

    Parameters
    ----------
    parts : mapping
        Something by part.
    """
    return next((part for part in ("test", "valid") if part in parts), list(parts)[-1])


def part_text(part: str) -> str:
    """What a part of the data is called in a sentence.

    Parameters
    ----------
    part : str
        Its name.

    Examples
    --------
    >>> part_text("valid"), part_text("600 K")
    ('validation data', '600 K data')
    """
    return f"{ {'train': 'training', 'valid': 'validation'}.get(part, part) } data"


def _accuracy(part: str, errors: Mapping[str, Errors]) -> list[Finding]:
    found = []
    units, data = shown_units(errors), part_text(part)
    rows = [row for row in errors[part].rows if not row.element]
    names = {row.quantity for row in rows}
    for row in rows:
        if f"{row.quantity}_per_atom" in names or not row.count:
            continue
        name = row.quantity.replace("_", " ")
        if not math.isnan(row.accuracy):
            largest = max(
                (r.count for r in errors[part].rows if r.quantity == row.quantity and r.element), default=0
            )
            share = largest / row.count
            mark: Mark = (
                "good" if 1 - row.accuracy < (1 - share) / 2 else "look" if row.accuracy > share else "bad"
            )
            found.append(
                Finding(
                    mark,
                    f"{name}: {row.accuracy:.1%} of the {data} are classified correctly; always "
                    f"answering the most frequent class would be right for {share:.1%}.",
                )
            )
            continue
        factor, unit = units[row.quantity]
        size = (
            f"{name}: the RMSE on the {data} is {_plain(row.rmse * factor)} {unit_text(unit)}".rstrip()
            + f" (MAE {_plain(row.mae * factor)})"
        )
        if math.isnan(row.r2):
            found.append(Finding("look", f"{size}; all labels are the same, so there is no R²."))
            continue
        mark = "good" if row.r2 > 0.95 else "look" if row.r2 > 0.5 else "bad"
        mean = factor * row.rmse / math.sqrt(max(1 - row.r2, 1e-12))
        guess = f"{_plain(mean)} {unit_text(unit)}"
        found.append(
            Finding(mark, f"{size}; predicting the mean label would give {guess.rstrip()} (R² {row.r2:.3f}).")
        )
    return found


def unit_text(unit: str) -> str:
    """A unit that stays on one line.

    Parameters
    ----------
    unit : str
        Unit of a Quantity.
    """
    return figure.unit_text(unit).replace(" ", "\N{NO-BREAK SPACE}")


def _plain(number: float) -> str:
    """Three digits, without powers of ten for thousands."""
    return f"{number:,.0f}" if 1000 <= number < 1e6 else f"{number:.3g}"


def _ratios(errors: Mapping[str, Errors]) -> tuple[dict[str, float], list[str]]:
    """Quantities that overfit, with validation error / training error, and those with equal errors."""
    if "train" not in errors or "valid" not in errors:
        return {}, []
    over, under = {}, []
    valid = {row.quantity: row for row in errors["valid"].rows if not row.element}
    for row in errors["train"].rows:
        other = valid.get(row.quantity)
        if row.element or other is None or not row.rmse > 0 or f"{row.quantity}_per_atom" in valid:
            continue
        ratio, name = other.rmse / row.rmse, row.quantity.replace("_", " ")
        if ratio > 3:
            over[name] = ratio
        elif ratio < 1.15:
            under.append(name)
    return over, under


def _overfitting(over: Mapping[str, float], under: Sequence[str]) -> list[Finding]:
    """Training error against the error on other data."""
    found = [
        Finding(
            "look",
            f"{name}: the validation error is {ratio:.1f} times the training error: the model overfits. More "
            "data help most; weight decay or an earlier end help a little.",
        )
        for name, ratio in over.items()
    ]
    if under:
        found.append(
            Finding(
                "good",
                f"{', '.join(under)}: the validation error is as small as the training error: the model does "
                "not overfit. If the error is too large for your use, train longer or take a larger model; "
                "more data alone will not help much.",
            )
        )
    return found


def _shift(errors: Mapping[str, Errors]) -> list[Finding]:
    """Test error against validation error."""
    if "test" not in errors or "valid" not in errors:
        return []
    valid = {row.quantity: row for row in errors["valid"].rows if not row.element}
    found = []
    for row in errors["test"].rows:
        other = valid.get(row.quantity)
        if row.element or other is None or f"{row.quantity}_per_atom" in valid or not other.rmse > 0:
            continue
        if row.rmse > 2 * other.rmse:
            name = row.quantity.replace("_", " ")
            found.append(
                Finding(
                    "look",
                    f"{name}: the test error is {row.rmse / other.rmse:.1f} times the validation error, so "
                    "the test data are of another kind. If the model will be used for such structures, add "
                    "some to the training data.",
                )
            )
    return found


def _unfinished(history: Sequence[Mapping[str, Any]], *, more: bool) -> Finding:
    """Whether the loss was still falling at the end; `more` if the model can still become more accurate."""
    losses = [row["valid_loss"] for row in history if row.get("valid_loss") is not None]
    if len(losses) < 5:
        return Finding(
            "look", f"The model was validated only {len(losses)} times: this was a very short training."
        )
    last = max(2, len(losses) // 10)
    before, best = min(losses[:-last]), min(losses)
    if before > 0 and best < 0.95 * before:
        return Finding(
            "look",
            f"The validation loss still fell by {1 - best / before:.0%} in the last {last} of {len(losses)} "
            "validations: train longer.",
        )
    text = f"The validation loss fell by less than 5 % in the last {last} of {len(losses)} validations"
    if more:
        return Finding("good", f"{text}. A new training with more epochs can still reach a lower one.")
    return Finding("good", f"{text}: more epochs alone will not help much.")


def _symmetry(report: SymmetryReport | None) -> Finding:
    if report is None:
        return Finding("look", "The symmetry of the model was not measured.")
    if report.failed:
        return Finding("bad", f"The symmetry is broken: {', '.join(report.failed)}.")
    if not report.quantities:
        return Finding("look", "The symmetry could not be measured, since all outputs are zero or constant.")
    largest = max((v for v in report.checks["float64"].values() if v is not None), default=0.0)
    return Finding("good", f"The symmetry holds: the largest relative error is {largest:.0e} in float64.")


def symmetry_rows(report: SymmetryReport) -> list[tuple[Mark, str, str, str]]:
    """For each check of a symmetry report: a mark, a sentence, and the errors in float64 and float32.

    Parameters
    ----------
    report : SymmetryReport
        The report.
    """

    def number(way: str, check: str) -> str:
        value = report.checks.get(way, {}).get(check, math.nan)
        if value is None:
            return "not finite"
        return "" if math.isnan(value) else f"{value:.0e}"

    rows: list[tuple[Mark, str, str, str]] = []
    for check in report.checks["float64"]:
        mark: Mark = "bad" if check in report.failed else "good"
        text = CHECKS.get(check, check)
        if mark == "bad":
            text = f"This does not hold: {text[0].lower()}{text[1:]}"
        rows.append((mark, text, number("float64", check), number("float32", check)))
    return rows


def group_text(report: SymmetryReport) -> str:
    """What the declared group means.

    Parameters
    ----------
    report : SymmetryReport
        The report.
    """
    meaning = next((text for name, text in _GROUPS.items() if report.group == name), "")
    return f"{report.group}: {meaning}" if meaning else report.group


def split_text(config: Mapping[str, Any]) -> str:
    """How the data were divided, from the section ``data`` of the description of a run.

    Parameters
    ----------
    config : mapping
        All sections.
    """
    data = config.get("data")
    if not isinstance(data, Mapping):
        return "The parts were handed over from Python, so this page does not know how they were divided."
    sentences = []
    for name, options in data.items():
        if name in ("valid", "test") or not isinstance(options, Mapping):
            continue
        where = f" from {options['path']}" if "path" in options else ""
        split = options.get("split")
        if not split:
            sentences.append(f"The training data were read{where} by {name}.")
            continue
        sizes = ", ".join(
            f"{part} {size if isinstance(size, (int, float)) else f'{len(size)} chosen structures'}"
            for part, size in split.items()
        )
        text = (
            f"The data read{where} by {name} were divided at random ({sizes}; seed {options.get('seed', 0)})"
        )
        if options.get("by"):
            text += f"; structures with the same {options['by']} are in the same part"
        sentences.append(text + ".")
    for part in ("valid", "test"):
        if isinstance(data.get(part), Mapping):
            ((name, options),) = data[part].items()
            where = options.get("path", name) if isinstance(options, Mapping) else name
            sentences.append(f"The {part_text(part)} are separate: {where}.")
    return " ".join(sentences)


def shared_text(parts: Mapping[str, Dataset]) -> list[Finding]:
    """Groups of structures, such as trajectories or molecules, that are in the training and in another part.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The data.
    """
    found = []
    for column in ("trajectory", "scaffold", "molecule", "canonical", "smiles"):
        for part, data in parts.items():
            if part == "train" or "train" not in parts or column not in data.info:
                continue
            if column == "trajectory" and not set(data.sources) & set(parts["train"].sources):
                continue  # trajectories of another file have numbers of their own
            known = {v for v in parts["train"].info.get(column, ()) if isinstance(v, (str, int, float))}
            values = [v for v in data.info[column] if isinstance(v, (str, int, float))]
            same = sum(v in known for v in values)
            if same:
                found.append(
                    Finding(
                        "look",
                        f"{same} of {len(data)} structures of the {part_text(part)} have a {column} that "
                        "occurs in the training data too. Their errors say little about a new "
                        f"{column}; a split with by: {column} would.",
                    )
                )
    return found


def missing_elements(parts: Mapping[str, Dataset], symbols: Sequence[str]) -> list[Finding]:
    """Elements that are not in the training data but in another part.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The data.
    symbols : sequence of str
        Symbols by atomic number.
    """
    if "train" not in parts:
        return []
    known = set(parts["train"].elements)
    found = []
    for part, data in parts.items():
        unknown = ", ".join(symbols[z] for z in data.elements if z not in known)
        if unknown:
            found.append(
                Finding(
                    "bad",
                    f"The {part_text(part)} have {unknown}, which the training data do not have: predictions "
                    "for these elements are not trained.",
                )
            )
    return found
