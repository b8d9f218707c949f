"""Tables and pictures of what was measured."""

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

GOAL = 20.0  # meV/Å, the validation error whose time is said


def write(folder: Path, what: Sequence[str], clock: str) -> None:
    """Prints the tables and keeps them and the pictures beside the measurements."""
    for name in what:
        if name == "accuracy":
            curves = read_curves(folder / name)
            text = accuracy_table(curves) if curves else ""
        else:
            rows = read_rows(folder / f"{name}.jsonl")
            text = {"speed": speed_table, "scaling": scaling_table}[name](rows, clock) if rows else ""
        if not text:
            continue
        print(text)
        (folder / f"{name}.md").write_text(text)
        picture = folder / f"{name}.png"
        if name == "accuracy":
            draw_accuracy(curves, picture)
        else:
            {"speed": draw_speed, "scaling": draw_scaling}[name](rows, clock, picture)
        print(f"picture: {picture}\n")


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# Arithmetic.


def ratios(first: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile of other / first, turn by turn: above 1, the other is slower."""
    values = [b / a for a, b in zip(first, other, strict=True)]
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return middle, low, high


def of_limit(gflop: float | None, limits: dict[str, float], seconds: float) -> float | None:
    """Share of the arithmetic that the machine could have done in this time."""
    return None if gflop is None else gflop / (limits["gflops"] * seconds)


def passed(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Seconds at which the error first fell below the goal; between two points both are interpolated logarithmically."""
    from math import exp, log

    before = None
    for seconds, error in curve:
        if error <= goal:
            if before is None or before[1] == error:
                return seconds
            part = (log(before[1]) - log(goal)) / (log(before[1]) - log(error))
            return exp(log(before[0]) + part * (log(seconds) - log(before[0])))
        before = (seconds, error)
    return None


# Tables.


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    return "\n".join(
        "| "
        + " | ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths)))
        + " |"
        for line in lines
    )


def grouped(rows: list[dict], keys: Sequence[str]) -> dict[tuple, list[dict]]:
    out: dict[tuple, list[dict]] = {}
    for row in rows:
        out.setdefault(tuple(row[k] for k in keys), []).append(row)
    return out


def number(value: float | None, form: str = ".3g") -> str:
    return "–" if value is None else format(value, form)


def versions(rows: list[dict]) -> str:
    seen = {f"{name} {version}" for row in rows for name, version in row.get("versions", {}).items()}
    return "Versions: " + ", ".join(sorted(seen)) + "."


def reasons(rows: list[dict]) -> str:
    """Why a code could not, once each."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        if "error" in row:
            lines.setdefault(f"{row['peer']}: {row['error']}", []).append(
                f"{row['size']} {row.get('atoms', row['measure'])}"
            )
    return "\n".join(f"- {text} ({', '.join(dict.fromkeys(where))})" for text, where in lines.items())


def speed_table(rows: list[dict], clock: str) -> str:
    parts = [f"# Speed: {rows[0]['data']}, ms of {clock} time a call\n\n{versions(rows)}"]
    for (threads, size, measure), group in grouped(rows, ("threads", "size", "measure")).items():
        timed = [r for r in group if "error" not in r]
        if not timed:
            continue
        first = timed[0]
        seen = [r["limits"] for r in rows if "limits" in r and r["threads"] == threads]
        limits = {name: max(limit[name] for limit in seen) for name in seen[0]}
        gflop = {r["peer"]: r.get("gflop") for r in timed}
        lines = []
        for row in timed:
            seconds = statistics.median(row[clock])
            middle, low, high = ratios(first[clock], row[clock])
            work = gflop[row["peer"]] or gflop.get(row["peer"].removesuffix("-compiled"))
            share = of_limit(work, limits, seconds / threads if clock == "processor" else seconds)
            lines.append(
                [
                    row["peer"],
                    number(1e3 * seconds),
                    f"{middle:.2f} ({low:.2f}–{high:.2f})",
                    number(row["start_processor"], ".1f"),
                    number(row["peak"], ".0f"),
                    number(row["parameters"] / 1e3, ".0f"),
                    number(work),
                    number(share and 100 * share, ".1f"),
                    number(row.get("gbytes")),
                ]
            )
        parts.append(
            f"## {measure}, {size}, {threads} thread{'s' if threads > 1 else ''} "
            f"(limits: {limits['gflops']:.0f} GFLOP/s, {limits['gbytes']:.1f} GB/s)\n\n"
            + markdown(
                [
                    "code",
                    "ms",
                    f"over {first['peer']}",
                    "start s",
                    "peak MB",
                    "thousand weights",
                    "GFLOP",
                    "% of limit",
                    "GB",
                ],
                lines,
            )
        )
    if why := reasons(rows):
        parts.append(f"Could not:\n\n{why}")
    return "\n\n".join(parts) + "\n"


def scaling_table(rows: list[dict], clock: str) -> str:
    peers = list(dict.fromkeys(r["peer"] for r in rows))
    lines = []
    for (atoms,), group in grouped(rows, ("atoms",)).items():
        found = {r["peer"]: r for r in group if "error" not in r}
        lines.append(
            [str(atoms)]
            + [
                f"{1e3 * statistics.median(r[clock]) / atoms:.3f} / {r['peak'] / 1e3:.2f}"
                if (r := found.get(p))
                else "–"
                for p in peers
            ]
        )
    text = (
        f"# Scaling: {rows[0]['data']}, energy and forces, {rows[0]['size']}, {rows[0]['threads']} thread(s)\n\n"
        f"ms of {clock} time an atom / peak GB\n\n"
        + markdown(["atoms", *peers], lines)
        + f"\n\n{versions(rows)}\n"
    )
    return text + (f"\nCould not:\n\n{why}\n" if (why := reasons(rows)) else "")


def read_curves(folder: Path) -> dict[str, list[dict[str, str]]]:
    curves = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            if rows := list(csv.DictReader(file)):
                curves[path.stem.replace("_", " ")] = rows
    return curves


def points(rows: list[dict[str, str]], column: str = "forces_rmse") -> list[tuple[float, float]]:
    return [(float(r["processor"]), float(r[column])) for r in rows]


def accuracy_table(curves: dict[str, list[dict[str, str]]]) -> str:
    lines = []
    for name, rows in curves.items():
        best, last = min(float(r["forces_rmse"]) for r in rows), rows[-1]
        lines.append(
            [
                name,
                number(passed(points(rows), GOAL), ".0f"),
                number(best, ".1f"),
                number(float(last["energy_rmse"]), ".2f"),
                number(float(last["processor"]), ".0f"),
                last["epoch"],
            ]
        )
    data = next(iter(curves.values()))[0]["data"]
    told = "\n".join(f"- {name}: {rows[-1]['versions']}" for name, rows in curves.items())
    return (
        f"# Accuracy: {data}, processor seconds of training on one thread, compilation included\n\n"
        + markdown(
            ["code", f"s to {GOAL:g}", "best forces meV/Å", "energy meV/atom", "seconds", "epochs"], lines
        )
        + f"\n\n{told}\n"
    )


# Pictures.


def figure(columns: int = 1, rows: int = 1):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot.subplots(
        rows, columns, figsize=(6.5 * columns, 4.2 * rows), squeeze=False, layout="constrained"
    )


def draw_speed(rows: list[dict], clock: str, path: Path) -> None:
    timed = [r for r in rows if "error" not in r]
    groups = grouped(timed, ("measure", "threads"))
    if not groups:
        return
    picture, axes = figure(columns=1, rows=len(groups))
    peers, sizes = (list(dict.fromkeys(r[k] for r in timed)) for k in ("peer", "size"))
    for axis, ((measure, threads), group) in zip(axes[:, 0], groups.items()):
        for n, peer in enumerate(peers):
            own = [r for r in group if r["peer"] == peer]
            if own:  # dots: the length of a bar says nothing on a logarithmic axis
                at = [sizes.index(r["size"]) + 0.6 * (n / max(len(peers) - 1, 1) - 0.5) for r in own]
                times = [1e3 * statistics.median(r[clock]) for r in own]
                axis.plot(at, times, "o", color=f"C{n}", label=peer)
                for x, y in zip(at, times):
                    axis.annotate(
                        f"{y:.3g}", (x, y), textcoords="offset points", xytext=(0, 5), ha="center", fontsize=7
                    )
        axis.set(
            yscale="log",
            ylabel=f"ms of {clock} time",
            title=f"{measure}, {threads} thread{'s' * (threads > 1)}",
        )
        axis.set_xticks(range(len(sizes)), sizes)
        axis.set_xlim(-0.5, len(sizes) - 0.5)
        axis.margins(y=0.2)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=7)
    picture.savefig(path, dpi=150)


def draw_scaling(rows: list[dict], clock: str, path: Path) -> None:
    picture, axes = figure(columns=2)
    for (peer,), group in grouped([r for r in rows if "error" not in r], ("peer",)).items():
        atoms = [r["atoms"] for r in group]
        axes[0, 0].plot(
            atoms, [1e3 * statistics.median(r[clock]) / r["atoms"] for r in group], "o-", label=peer
        )
        axes[0, 1].plot(atoms, [r["peak"] / 1e3 for r in group], "o-", label=peer)
    axes[0, 0].set(
        xscale="log",
        yscale="log",
        xlabel="atoms",
        ylabel=f"ms of {clock} time an atom",
        title="energy and forces",
    )
    axes[0, 1].set(xscale="log", yscale="log", xlabel="atoms", ylabel="GB", title="peak resident memory")
    axes[0, 0].legend(fontsize=8)
    picture.savefig(path, dpi=150)


def draw_accuracy(curves: dict[str, list[dict[str, str]]], path: Path) -> None:
    picture, axes = figure()
    axis = axes[0, 0]
    for name, rows in curves.items():
        axis.plot(*zip(*points(rows)), label=name)
    axis.axhline(GOAL, color="0.6", linewidth=0.8)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="processor seconds",
        ylabel="validation force RMSE (meV/Å)",
        title=next(iter(curves.values()))[0]["data"],
    )
    axis.legend(fontsize=8)
    picture.savefig(path, dpi=150)
