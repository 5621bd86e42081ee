"""One-to-one assignment of greatest total score, with pairs that may be forbidden."""

import numpy as np
import numpy.typing as npt

FORBIDDEN = -np.inf
"""The score of a pair that must not be made."""


def best_assignment(scores: npt.NDArray[np.float64]) -> list[int | None]:
    """For every row the column given to it, or None; no column twice.

    As many rows as possible are served, and among those ways the one of greatest total score. `scores` is (rows,
    columns); entries of `FORBIDDEN` are never chosen. This is the Hungarian method with potentials (Kuhn 1955, in
    Jonker and Volgenant's shortest-path form), O(rows^2 x columns); SciPy's would be the only use of SciPy here.
    """
    rows, columns = scores.shape
    if not rows or not columns:
        return [None] * rows
    allowed = np.isfinite(scores)
    # one dummy column a row, dearer than every real choice together, so that no row has to take a forbidden pair
    span = float(np.ptp(scores[allowed])) if allowed.any() else 0.0
    dear = (span + 1.0) * (rows + 1)
    top = float(scores[allowed].max()) if allowed.any() else 0.0
    cost = np.full((rows, columns + rows), dear)
    cost[:, :columns] = np.where(allowed, top - np.where(allowed, scores, 0.0), 2 * dear * (rows + 1))
    return [int(column) if column < columns else None for column in _cheapest_columns(cost)]


def total_score(scores: npt.NDArray[np.float64], chosen: list[int | None]) -> float:
    """The sum over the pairs that were made."""
    return float(sum(scores[row, column] for row, column in enumerate(chosen) if column is not None))


def _cheapest_columns(cost: npt.NDArray[np.float64]) -> list[int]:
    """The column of every row at least total cost; (rows, columns) with rows <= columns."""
    rows, columns = cost.shape
    row_price = np.zeros(rows)
    column_price = np.zeros(columns)
    owner = np.full(columns, -1)
    for new_row in range(rows):
        shortest = np.full(columns, np.inf)
        came_from = np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        row, last, path_cost = new_row, -1, 0.0
        while True:
            step = path_cost + cost[row] - row_price[row] - column_price
            better = ~done & (step < shortest)
            shortest[better] = step[better]
            came_from[better] = last
            last = int(np.argmin(np.where(done, np.inf, shortest)))
            path_cost = float(shortest[last])
            done[last] = True
            if owner[last] < 0:
                break
            row = int(owner[last])
        row_price[new_row] += path_cost
        for column in np.flatnonzero(done).tolist():
            slack = path_cost - shortest[column]
            column_price[column] -= slack
            if owner[column] >= 0:
                row_price[owner[column]] += slack
        while last >= 0:
            before = int(came_from[last])
            owner[last] = int(owner[before]) if before >= 0 else new_row
            last = before
    result = [-1] * rows
    for column, owning_row in enumerate(owner.tolist()):
        if owning_row >= 0:
            result[owning_row] = column
    return result
