"""The sections of a report page."""

import math
import platform
from collections.abc import Mapping

import numpy as np
import torch

from molequi import plotting
from molequi.ensemble import Ensemble
from molequi.errors import DataError
from molequi.finetuning.report import as_report
from molequi.inference.calibration import NORMAL, calibration
from molequi.inference.metrics import named_part, shown_units
from molequi.model import Model
from molequi.plotting.figure import unit_text, with_unit
from molequi.plotting.parities import parity_of
from molequi.quantities import Quantity, per_atom
from molequi.report_page import blocks, words
from molequi.report_page.blocks import Block, Cell, Section
from molequi.report_page.data_section import data_section
from molequi.report_page.finished import FinishedRun
from molequi.report_page.sample import ATOMS, STRUCTURES, Sample, Sums, columns, errors_of
from molequi.symmetry_report import SymmetryReport
from molequi.util.run_log import versions

_WORST = 5
_HIGH = 1.5  # errors so many times the mean one stand out


def all_sections(run: FinishedRun, samples: Mapping[str, Sample]) -> list[Section]:
    """All sections of the page.

    Parameters
    ----------
    run : FinishedRun
        The run.
    samples : mapping of str to Sample
        Structures that are drawn and grouped.
    """
    report = symmetry_of(run.model)
    return [
        Section(
            "summary",
            "In short",
            "Lines with ✓ are as they should be; lines with ! and ✗ say what to look at, and what helps.",
            [blocks.marks(words.findings(run.errors, run.history, report))],
        ),
        data_section(run),
        _errors(run),
        _parity(samples),
        _learning(run),
        _groups(run, samples),
        _worst(run, samples),
        _calibration(run, samples),
        _symmetry(report),
        *_tuning(run),
        _sizes(run),
        _configuration(run),
        _timing(run),
    ]


def subtitle(model: Model | Ensemble) -> str:
    """One line about the model.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    """
    members = f"ensemble of {_members(model)} models, " if _members(model) > 1 else ""
    count = sum(p.numel() for p in model.parameters())
    predicts = ", ".join(model.quantities)
    return f"{members}{type(model.backbone).__name__}, {count:,} parameters, predicts {predicts}"


def _members(model: Model | Ensemble) -> int:
    """Number of models."""
    return len(model.members) if isinstance(model, Ensemble) else 1


def symmetry_of(model: Model | Ensemble) -> SymmetryReport | None:
    """The symmetry report in the metadata of a model; None if it has none.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    """
    record = (getattr(model, "metadata", None) or {}).get("symmetry_report")
    return SymmetryReport.from_dict(record) if record else None


def _errors(run: FinishedRun) -> Section:
    units = shown_units(run.errors)
    numbers: list[list[str]] = []
    for name_of_part, errors in run.errors.items():
        part = named_part(name_of_part, errors.sample)
        for row in errors.rows:
            name = row.quantity.replace("_", " ")
            if not math.isnan(row.accuracy):
                continue
            factor, unit = units[row.quantity]
            r2 = "" if math.isnan(row.r2) else f"{row.r2:.4f}"
            numbers.append(
                [part, name, row.element or "all", f"{row.mae * factor:.4g}", f"{row.rmse * factor:.4g}"]
                + [unit_text(unit), r2, f"{row.count:,}"]
            )
    body: list[Block] = []
    if numbers:
        head = ["part", "quantity", "element", "MAE", "RMSE", "unit", "R²", "values"]
        body.append(blocks.table(head, numbers, left=3))
    body += _class_errors(run)
    return Section(
        "errors",
        "Errors, by element",
        "Compare the errors of the test (or validation) data with what your use needs; R² near 1 means "
        "that the model explains nearly all of the variation; elements with much larger errors need more.",
        body,
    )


def _class_errors(run: FinishedRun) -> list[Block]:
    """Accuracy of each class, with a column for each part."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for part, errors in run.errors.items():
        for row in errors.rows:
            if not math.isnan(row.accuracy):
                key = (row.quantity.replace("_", " "), row.element or "all")
                found.setdefault(key, {})[part] = f"{row.accuracy:.3f} ({row.count:,})"
    if not found:
        return []
    head = [
        "quantity",
        "class",
        *(f"{named_part(part, e.sample)}: accuracy (values)" for part, e in run.errors.items()),
    ]
    rows = [[*key, *(cells.get(part, "") for part in run.errors)] for key, cells in found.items()]
    return [blocks.table(head, rows, left=2)]


def _parity(samples: Mapping[str, Sample]) -> Section:
    figure = parity_of({part: (found.data, found.results) for part, found in samples.items()})
    capped = [
        f"{len(found.data):,} of {found.total:,} structures of {part}"
        for part, found in samples.items()
        if len(found.data) < found.total
    ]
    note = (
        f"Drawn are {', '.join(capped)}, evenly spaced (at most {STRUCTURES:,} structures and {ATOMS:,} "
        "atoms of each part)."
        if capped
        else "All structures are drawn."
    )
    return Section(
        "parity",
        "Predicted against reference values",
        "Points should lie on the line; a cloud of another slope, a second branch or single points far away "
        "mean wrong labels, other settings in a part of the data, or structures that the model has not seen.",
        [blocks.picture(figure, "predicted against reference values"), blocks.text(note)],
    )


def _learning(run: FinishedRun) -> Section:
    rows = run.history
    against = "step" if rows and all("step" in row for row in rows) else "epoch"
    body = [blocks.text("This folder has no metrics.csv, so there is nothing to draw.")]
    if rows:
        figure = plotting.learning_curve(rows, against=against, quantities=run.model.quantities)  # type: ignore[arg-type]
        body = [blocks.picture(figure, f"learning curve against {against}s")]
        best = min(
            (row for row in rows if row.get("valid_loss") is not None),
            key=lambda row: row["valid_loss"],
            default=None,
        )
        if best is not None:
            body.append(
                blocks.text(
                    f"The lowest validation loss is that of epoch {best['epoch']:.0f} of "
                    f"{rows[-1]['epoch']:.0f}."
                )
            )
    return Section(
        "learning",
        "Learning curve",
        "Both curves should fall and then flatten; a validation curve that rises while the training curve "
        "falls means overfitting, and curves that still fall at the end mean that a longer training helps.",
        body,
    )


def _groups(run: FinishedRun, samples: Mapping[str, Sample]) -> Section:
    part = words.held_out(samples)
    found = samples[part]
    made, left = columns(found, run.parts.get("train", found.data))
    sums = {name: (q, errors_of(q, found)) for name, q in found.quantities().items()}
    units = shown_units(run.errors)
    body: list[Block] = []
    for column in made:
        head = [column.name, "in training", f"in {part}"]
        cells = []
        for quantity, one in sums.values():
            factor, unit = units.get(_shown_name(quantity), (1, quantity.unit))
            values, mean = _by_group(one, column.groups, len(column.labels))
            values, mean = values * factor, mean * factor
            label = f"{quantity.name}, " + ("wrong answers" if quantity.classes else with_unit("MAE", unit))
            head.append(label)
            cells.append([Cell(f"{v:.4g}", v > _HIGH * mean) if math.isfinite(v) else "" for v in values])
        numbers = np.bincount(column.groups, minlength=len(column.labels))
        rows = [
            [label, f"{column.trained[k]:,}", f"{numbers[k]:,}", *(values[k] for values in cells)]
            for k, label in enumerate(column.labels)
        ]
        body += [blocks.heading(f"by {column.name}"), blocks.table(head, rows)]
    if left:
        body.append(blocks.text(f"Columns that do not group the structures: {', '.join(left)}."))
    if not made:
        body.append(blocks.text("The data have no column that groups the structures."))
    return Section(
        "groups",
        "Errors by column of the data",
        f"Red errors are more than {_HIGH} times those of all {words.part_text(part)}: add training "
        "structures of these groups, or do not use the model for them.",
        body,
    )


def _shown_name(quantity: Quantity) -> str:
    """The name in the table of errors whose unit is that of the errors here."""
    return f"{quantity.name}_per_atom" if per_atom(quantity) else quantity.name


def _by_group(one: Sums, groups: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Errors of each group, and the error of all."""
    count = np.bincount(groups, weights=one.count, minlength=size)
    total = np.bincount(groups, weights=one.absolute, minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count, float(total.sum() / count.sum())


def _worst(run: FinishedRun, samples: Mapping[str, Sample]) -> Section:
    part = words.held_out(samples)
    found, units = samples[part], shown_units(run.errors)
    body: list[Block] = []
    for quantity in found.quantities().values():
        if quantity.classes:
            continue
        one = errors_of(quantity, found)
        with np.errstate(invalid="ignore", divide="ignore"):
            rms = np.sqrt(one.square / one.count)
        order = [k for k in np.argsort(-np.nan_to_num(rms, nan=-1.0)) if one.count[k]][:_WORST]
        factor, unit = units.get(_shown_name(quantity), (1, quantity.unit))
        rows = []
        for k in order:
            smiles = found.data.info.get("smiles")
            rows.append(
                [found.data.origins[k], "" if smiles is None else str(smiles[k])]
                + [f"{rms[k] * factor:.4g}", f"{rms[k] / np.nanmean(rms):.1f}"]
            )
        head = ["structure", "SMILES", with_unit("RMSE", unit), "times the mean"]
        if "smiles" not in found.data.info:
            head, rows = [h for h in head if h != "SMILES"], [[r[0], *r[2:]] for r in rows]
        body += [
            blocks.heading(_shown_name(quantity).replace("_", " ")),
            blocks.table(head, rows, left=len(head) - 2),
        ]
    return Section(
        "worst",
        "Largest errors",
        "Look at these structures first: a wrong label, a broken geometry or a rare kind of structure is "
        "often among them.",
        body or [blocks.text("Classes have no largest errors; see the table of wrong answers above.")],
    )


def _calibration(run: FinishedRun, samples: Mapping[str, Sample]) -> Section:
    what = (
        "About 68 % of the errors should be within one standard deviation and 95 % within two, and the large "
        "points should lie on the line; factors above 1 mean that the model is too sure of itself."
    )
    part = words.held_out(samples)
    body: list[Block] = []
    if isinstance(run.model, Ensemble) and part == "valid":
        body.append(
            blocks.text(
                "These are the validation data, on which the standard deviations were calibrated. Only test "
                "data show whether the calibration holds for others."
            )
        )
    if isinstance(run.model, Ensemble):
        found = calibration(run.model, samples[part].data)
        rows = [
            [
                name,
                f"{one.scale:.3g}",
                *(f"{share:.0%} ({normal:.0%})" for share, normal in zip(one.within, NORMAL)),
                f"{one.miscalibration:.3f}",
                f"{len(one.error):,}",
            ]
            for name, one in found.items()
        ]
        head = ["quantity", "error / std", "within 1 std (normal)", "within 2 std (normal)"]
        if rows:
            body.append(blocks.table([*head, "miscalibration area", "values"], rows))
        try:
            figure = plotting.calibration(run.model, samples[part].data)
            body.append(
                blocks.text(
                    "Above each picture: the factor between errors and standard deviations, then the shares "
                    "without → with this factor, and in parentheses those of a normal distribution."
                )
            )
            body.append(
                blocks.picture(figure, f"errors against standard deviations, {words.part_text(part)}")
            )
        except DataError as reason:
            body.append(blocks.text(f"{reason}."))
    confidence = _confidence(samples[part])
    if confidence:
        body += [
            blocks.text("Classes are calibrated if the accuracy is as high as the confidence."),
            blocks.table(["quantity", "confidence", "mean confidence", "accuracy", "answers"], confidence, 2),
        ]
    if not body:
        body.append(
            blocks.text(
                "A single model gives no uncertainty. Train an ensemble with `train.seed=[0,1,2]`: its "
                "standard deviations are calibrated on the validation data and checked here."
            )
        )
    return Section("calibration", "Calibration of the uncertainty", what, body)


def _confidence(found: Sample) -> list[list[str]]:
    """Accuracy of the answers of each range of confidence."""
    rows = []
    for name, quantity in found.quantities().items():
        if not quantity.classes:
            continue
        given = np.concatenate([graph.targets[name].numpy().reshape(-1) for graph in found.data])
        chance = np.concatenate(
            [
                np.atleast_2d(r[f"{name}_probability"]).reshape(-1, len(quantity.classes))
                for r in found.results
            ]
        )
        known = ~np.isnan(given)
        sure, right = chance[known].max(1), chance[known].argmax(1) == given[known]
        for low, high in ((0.0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):
            inside = (sure > low) & (sure <= high)
            if inside.any():
                rows.append(
                    [name, f"{low:.0%} to {high:.0%}", f"{sure[inside].mean():.0%}"]
                    + [f"{right[inside].mean():.0%}", f"{inside.sum():,}"]
                )
    return rows


def _symmetry(report: SymmetryReport | None) -> Section:
    what = (
        "Every line should hold: errors near 1e-13 in float64 and 1e-6 in float32 are round-off, and an "
        "error that is as large in float64 is a broken symmetry."
    )
    if report is None:
        text = "The symmetry was not measured. `molequi audit MODEL STRUCTURES` does it."
        return Section("symmetry", "Symmetry", what, [blocks.text(text)])
    rows = [
        [{"good": "✓", "look": "!", "bad": "✗"}[mark], Cell(text, mark == "bad"), double, single]
        for mark, text, double, single in words.symmetry_rows(report)
    ]
    body = [
        blocks.text(f"The model declares {words.group_text(report)}."),
        blocks.text(
            f"It was measured at the end of the training on {len(report.structures)} structures with "
            f"{report.draws} random transforms of each, for {', '.join(report.quantities) or 'no quantity'}; "
            "errors are relative. `molequi audit MODEL STRUCTURES` measures more."
        ),
        blocks.table(["", "what was checked", "largest error, float64", "float32"], rows, left=2),
    ]
    return Section("symmetry", "Symmetry", what, body)


def _tuning(run: FinishedRun) -> list[Section]:
    """What a fine-tuning changed; nothing for a training that is none."""
    found = as_report((getattr(run.model, "metadata", None) or {}).get("finetuning"))
    if found is None:
        return []
    what = (
        "The error on new data should fall from the second column to the third, and that on old data should "
        "stay about what it was."
    )
    body = [blocks.text(f"{name}: {text}") for name, text in found.facts().items()]
    for title, head, rows in found.tables():
        body += [blocks.heading(title), blocks.table(head, [list(row) for row in rows], left=2)]
    return [Section("finetuning", "Fine-tuning", what, body)]


def _sizes(run: FinishedRun) -> Section:
    what = (
        "If the validation error falls on a straight line, more data help, and the slope says how much; if "
        "it is level, or as low on the training data, more data do not help."
    )
    if run.curve is None:
        text = (
            "This was not measured. `molequi curve CONFIG` trains on 1/8, 1/4, 1/2 and all of the training "
            "data and says how many more structures a given error needs; the next report page shows it here."
        )
        return Section("size", "Would more data help?", what, [blocks.text(text)])
    head, rows = run.curve.table()
    body = [
        blocks.table(head, rows, left=0),
        blocks.picture(plotting.size_curve(run.curve), "errors against the number of training structures"),
        *(blocks.text(run.curve.advice(quantity)) for quantity in run.curve.units),
    ]
    return Section("size", "Would more data help?", what, body)


def _configuration(run: FinishedRun) -> Section:
    from omegaconf import OmegaConf

    known = {
        name: run.config[name]
        for name in ("data", "backbone", "predict", "pretrain", "train")
        if name in run.config
    }
    body = [
        blocks.Block("code", OmegaConf.to_yaml(OmegaConf.create(known)))
        if known
        else blocks.text("The description of the run is not known.")
    ]
    what = "The same training again: save these lines as a YAML file and run `molequi train FILE`."
    if "data" not in known:
        what = "These are the settings of the training; the data were handed over from Python."
    return Section("configuration", "Configuration", what, body)


def _timing(run: FinishedRun) -> Section:
    model, rows = run.model, []
    epochs = int(run.history[-1]["epoch"]) if run.history else 0
    steps = int(run.history[-1].get("step", 0)) if run.history else 0
    if run.seconds and epochs:
        members = _members(model)
        train = len(run.parts["train"]) if "train" in run.parts else 0
        rows += [
            ["training", _duration(run.seconds) + (f" for {members} members" if members > 1 else "")],
            ["epochs, steps", f"{epochs}, {steps:,}" + (" of each member" if members > 1 else "")],
            ["time of an epoch", _duration(run.seconds / epochs / members)],
        ]
        if train:
            rows.append(["structures per second", f"{train * epochs * members / run.seconds:,.0f}"])
    rows += [
        ["parameters", f"{sum(p.numel() for p in model.parameters()):,}"],
        ["precision", str(model.dtype).removeprefix("torch.")],
        ["device of this page", str(model.device)],
        ["threads of this page", str(torch.get_num_threads())],
        *([name, number] for name, number in versions().items()),
        ["system", f"{platform.system()} {platform.machine()}"],
    ]
    return Section(
        "timing",
        "Time and versions",
        "Note these numbers beside every published result; a training that is much slower than others of its "
        "size runs with too many threads, too small batches, or on a busy machine.",
        [blocks.table(["", ""], rows, left=2)],
    )


def _duration(seconds: float) -> str:
    """A time for reading."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
