"""Farthest and nearest points of a cloud, chosen by geometry alone and not by the order of points."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

TIE = 1e-5  # distances with a smaller relative difference are equal: more than the round-off of float32
LEAF = 256  # points of a leaf in `farthest_points`


def farthest_points(pos: Float[np.ndarray, "N D"], ratio: float) -> Int[np.ndarray, "n"]:
    """Farthest point sampling of a cloud (Eldar et al. 1997, doi 10.1109/83.623193).

    The first point is the one farthest from the centroid; each next one is the point that is farthest from
    those chosen so far. All points at the same largest distance (to 1e-5 of it) are chosen together, so that
    the result depends neither on the order of the points nor, in a symmetric cloud, on its orientation; there
    may then be more points than asked for. This holds for positions that were stored as float32, too, unless
    the cloud is so far from the origin that they have lost digits.
    Points in the same place are chosen together.

    Points are in leaves of a k-d tree. A chosen point changes only leaves that are closer to it than their
    farthest point is to the points chosen before: the same points are found with less work, and memory is
    linear in the number of points.

    Parameters
    ----------
    pos : array, shape (N, D)
        Positions, float64.
    ratio : float
        The share of points that is chosen, rounded up to whole points.

    Returns
    -------
    array, shape (n,)
        Numbers of the chosen points, ascending.

    Examples
    --------
    >>> farthest_points(np.array([[0.0], [1.0], [2.0], [4.0]]), 0.5).tolist()
    [0, 3]
    """
    leaves = list(_leaves(pos))
    real = np.arange(max(len(leaf) for leaf in leaves)) < np.array([len(leaf) for leaf in leaves])[:, None]
    index = np.zeros(real.shape, dtype=np.int64)
    index[real] = np.concatenate(leaves)
    table = pos[index]  # (leaves, points of a leaf, D)
    low = np.where(real[:, :, None], table, np.inf).min(1)
    high = np.where(real[:, :, None], table, -np.inf).max(1)
    wanted, chosen = int(np.ceil(ratio * len(pos) - 1e-9)), np.zeros(len(pos), dtype=bool)
    away = np.where(real, np.square(table - pos.mean(0)).sum(2), -1.0)  # squared, to the centroid
    farthest = away.max(1)
    best = farthest.max()
    least, nearest = TIE**2 * best, np.where(real, np.inf, -1.0)
    while True:
        some = np.flatnonzero(farthest >= best * (1 - 2 * TIE))
        new = index[some][(away[some] >= best * (1 - 2 * TIE)) & real[some]]
        chosen[new] = True
        if away is not nearest:  # from here on it is the distance to the chosen points that counts
            away, farthest = nearest, nearest.max(1)
        for point in pos[new]:
            gap = np.maximum(np.maximum(low - point, point - high), 0.0)
            near = np.flatnonzero(np.square(gap).sum(1) <= farthest)
            nearest[near] = np.minimum(nearest[near], np.square(table[near] - point).sum(2))
            farthest[near] = nearest[near].max(1)
        best = farthest.max()
        wanted -= len(new)
        if wanted <= 0 or best <= least:
            return np.flatnonzero(chosen)


def _leaves(pos: np.ndarray) -> Iterator[np.ndarray]:
    """Points divided into groups of neighbors, at most `LEAF` in each."""
    from scipy.spatial import cKDTree

    if len(pos) <= LEAF:
        yield np.arange(len(pos))
        return
    nodes = [cKDTree(pos, leafsize=LEAF).tree]
    while nodes:
        node = nodes.pop()
        if node.lesser is None:  # a leaf has more points where many have the same position
            yield from np.array_split(node.indices, -(-len(node.indices) // LEAF))
        else:
            nodes += [node.lesser, node.greater]


def nearest_points(
    pos: Float[np.ndarray, "N D"], centers: Float[np.ndarray, "n D"], k: int
) -> tuple[Int[np.ndarray, "E"], Int[np.ndarray, "E"]]:
    """The k nearest points to each center, and all others that are as far as the k-th (to 1e-5).

    Parameters
    ----------
    pos : array, shape (N, D)
        Positions.
    centers : array, shape (n, D)
        Positions of the centers.
    k : int
        Number of points; all, if there are fewer.

    Returns
    -------
    points, of : array, shape (E,)
        Numbers of points, and of the center of each; sorted by center, then point.

    Examples
    --------
    >>> points, of = nearest_points(np.array([[0.0], [1.0], [3.0]]), np.array([[2.0]]), 1)
    >>> points.tolist(), of.tolist()  # a tie
    ([1, 2], [0, 0])
    """
    from scipy.spatial import cKDTree

    tree, number, more = cKDTree(pos), min(k, len(pos)), min(k + 4, len(pos))
    away, found = tree.query(centers, k=range(1, more + 1))
    bound = away[:, number - 1] * (1 + TIE)
    of, slot = np.nonzero(away <= bound[:, None])
    point = found[of, slot]
    many = np.flatnonzero((away[:, -1] <= bound) & (more < len(pos)))  # there may be further ties
    if len(many):
        balls = tree.query_ball_point(centers[many], bound[many])
        kept = ~np.isin(of, many)
        of = np.concatenate([of[kept], np.repeat(many, [len(ball) for ball in balls])])
        point = np.concatenate([point[kept], *(np.asarray(ball, dtype=np.int64) for ball in balls)])
    order = np.lexsort((point, of))
    return point[order], of[order]
