"""Equal and almost equal structures, within a part and in two."""

import numpy as np

from molequi.data.overlap import contradictions, equal_structures, shared_molecules
from molequi.lint.frames import Frames, groups_of
from molequi.lint.pairs import principal_directions
from molequi.lint.report import Finding, finding

_ALMOST = 0.01  # Å
_SMALLEST = 4  # atoms: structures of fewer have so few coordinates that scans are dense on purpose


def equal(frames: Frames) -> list[Finding]:
    """Equal structures of several atoms, molecules in two parts, and equal structures with different labels.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    found = []
    start = dict(zip(frames.parts, np.cumsum([0, *(len(d) for d in frames.parts.values())]).tolist()))
    between: list[tuple[int, int]] = []
    within: list[tuple[int, int]] = []
    for group in equal_structures(frames.parts):
        first, k = group[0]
        if frames.parts[first][k].num_nodes == 1:
            continue  # every part may have the isolated atoms
        seen = {first: start[first] + k}
        for part, number in group[1:]:
            twin = start[part] + number
            if part in seen:
                within.append((seen[part], twin))
            else:
                between.append((start[first] + k, twin))
                seen[part] = twin
    names = list(frames.parts)
    if between:
        a, b = between[0]
        text = (
            f"equal structures in two parts ({len(between)} of {len(frames)}), so that errors of one are no "
            f"test of the other: {frames.origins[b]} in {names[frames.part[b]]} is {frames.origins[a]} in "
            f"{names[frames.part[a]]}; leave them out of one part"
        )
        found.append(finding("duplicates", "error", text, frames.origins, [b for _, b in between]))
    if within:
        earlier, again = within[0]
        text = (
            f"equal structures in one part ({len(within)} of {len(frames)}): {frames.origins[again]} is "
            f"{frames.origins[earlier]}"
        )
        found.append(finding("duplicates", "info", text, frames.origins, [b for _, b in within]))
    found += [finding("shared-molecules", "error", text) for text in shared_molecules(frames.parts)]
    return found + [finding("contradictions", "error", text) for text in contradictions(frames.parts)]


def almost_equal(frames: Frames) -> list[Finding]:
    """Molecules whose interatomic distances all agree to 0.01 Å with those of another one.

    Rotation, reflection and order of the atoms play no role: the distances are sorted by pair of elements.
    Only structures of four or more atoms without a cell are compared, with equal charge, spin and other
    fields.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    compared = np.flatnonzero(~frames.periodic & (frames.counts >= _SMALLEST) & (frames.counts <= 100))
    pairs: list[tuple[int, int]] = []
    for members in groups_of(frames.kinds(ordered=False)[compared]):
        pairs += _close_pairs(frames, compared[members])
    across = sorted({max(a, b) for a, b in pairs if frames.part[a] != frames.part[b]})
    inside = sorted({max(a, b) for a, b in pairs if frames.part[a] == frames.part[b]})
    found = []
    for numbers, severity, where in (
        (across, "warning", "in two parts"),
        (inside, "info", "in one part"),
    ):
        if numbers:
            text = (
                f"almost equal structures {where} ({len(numbers)} of {len(frames)}), whose distances "
                f"between atoms all agree to {_ALMOST} Å"
            )
            text += (
                ": its error is no test; split whole trajectories"
                if severity == "warning"
                else ": they add little"
            )
            found.append(finding("near-duplicates", severity, text, frames.origins, numbers))  # type: ignore[arg-type]
    return found


def _close_pairs(frames: Frames, members: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of structures of one composition with almost equal distances that are not equal."""
    from scipy.spatial import cKDTree

    rows = np.stack([_sorted_distances(frames, k) for k in members])
    few = rows
    if rows.shape[1] > 12:
        few = rows @ principal_directions(rows - rows.mean(0), 12)  # a projection makes no distance longer
    reach = _ALMOST * np.sqrt(rows.shape[1])
    near = cKDTree(few).query_pairs(reach, output_type="ndarray")
    if not len(near):
        return []
    off = np.concatenate(
        [
            np.abs(rows[part[:, 0]] - rows[part[:, 1]]).max(1)
            for part in np.array_split(near, len(near) // 20_000 + 1)
        ]
    )
    chosen = near[(off < _ALMOST) & (off > 1e-4)]  # equal ones are found as such
    return [(int(members[a]), int(members[b])) for a, b in chosen]


def _sorted_distances(frames: Frames, k: int) -> np.ndarray:
    """Distances between atoms, sorted for each pair of elements."""
    graph = frames.graph(k)
    z, pos = graph.z.numpy(), graph.pos.numpy()
    i, j = np.triu_indices(len(z), 1)
    length = np.linalg.norm(pos[i] - pos[j], axis=1)
    kind = np.minimum(z[i], z[j]) * 200 + np.maximum(z[i], z[j])
    return length[np.lexsort((length, kind))]
