"""Eras: the time that a history has come to, and the items that go with it, told by the order of a log alone.

What people take changes with the years. A log without dates still shows it: most people who took two items took them in
the same order. So all items are put on one line of time, and the line is cut into eras of about as many interactions
each. We count how often a history that has come to an era goes on with an item of each era. Not of the paper.

Letters of the shapes as in utils/data.py: B users, N items.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import cg

from utils.data import Sequences, cumulate
from utils.util import numbers_below

ERAS = 80
UNKNOWN = ERAS  # of an item that the log has in no order with another, and of a history without any known item
LATEST = 3  # known items of a history that tell its era
SMOOTHING = 3.0  # eras: deviation of the Gaussian that counts are spread with
LEAST_HISTORIES = 1_000  # with an end: of fewer nothing is said, as what is learnt of a part of a log fits no more
RIDGE = 1e-3  # weight of the square of an item's place in the least squares; that of a step has the weight 1
LEAST_SHARE = 0.1 / ERAS  # of the log, which an era has at least when its gain is computed
MOST_ITERATIONS = 2_000  # of the least squares
PRIOR = 20.0  # spread as the whole log and added to the smoothed counts of every era


class Eras(NamedTuple):
    """The eras of N items, and what follows what."""

    line: np.ndarray  # (N,) float64, the share of the log with earlier items, in [0, 1]
    item: np.ndarray  # (N,) int64, era of each item, UNKNOWN for some
    gain: np.ndarray  # (ERAS + 1, ERAS + 1) float32, by era of history and item, in nats; see `of`

    @classmethod
    def of(cls, log: Sequences, items: int) -> "Eras":
        """The eras of a log, in which the targets that are to be predicted must not be.

        The gain of an item's era for a history's is the logarithm of how many times larger the share of the item's era
        is in the ends of histories that have come to the other era than in all of the log; 0 where one is unknown.
        """
        counts = np.bincount(numbers_below(log.items, items, "items"), minlength=items)
        share = counts / max(1, counts.sum())
        times, known = item_times(log, items)
        order, line = np.argsort(times, kind="stable"), np.zeros(items)
        line[order] = np.cumsum(share[order]) - share[order] / 2
        item = np.where(known, (line * ERAS).astype(np.int64).clip(max=ERAS - 1), UNKNOWN)
        eras = cls(line, item, np.zeros((ERAS + 1, ERAS + 1), dtype=np.float32))

        before, targets = log.select(np.flatnonzero(log.lengths)).split_targets()
        ends = (eras.of_histories(before), item[targets])
        counted = (ends[0] != UNKNOWN) & (ends[1] != UNKNOWN)
        if counted.sum() < LEAST_HISTORIES:
            return eras
        ended = np.zeros((ERAS, ERAS))
        np.add.at(ended, tuple(era[counted] for era in ends), 1)
        ended = gaussian_filter(ended, SMOOTHING)
        usual = np.bincount(item, weights=share, minlength=ERAS + 1)[:ERAS]
        usual = np.maximum(gaussian_filter1d(usual, SMOOTHING), LEAST_SHARE)
        expected = (ended.sum(1, keepdims=True) + PRIOR) * usual
        eras.gain[:ERAS, :ERAS] = np.log((ended + PRIOR * usual) / expected)
        return eras

    def of_histories(self, histories: Sequences) -> np.ndarray:
        """The era that each history has come to, (B,) int64: that of the mean place of its latest known items."""
        user = np.repeat(np.arange(len(histories)), histories.lengths)
        known = self.item[histories.items] != UNKNOWN
        lengths = np.bincount(user[known], minlength=len(histories))
        latest = Sequences(None, histories.items[known], cumulate(lengths)).last(LATEST)
        user = np.repeat(np.arange(len(latest)), latest.lengths)
        mean = np.bincount(user, self.line[latest.items], len(latest)) / np.maximum(1, latest.lengths)
        return np.where(latest.lengths > 0, (mean * ERAS).astype(np.int64).clip(max=ERAS - 1), UNKNOWN)

    def by_era(self, histories: Sequences) -> np.ndarray:
        """The gain of every era, the unknown one last, for B histories, (B, ERAS + 1) float32."""
        return self.gain[self.of_histories(histories)]

    def gains(self, histories: Sequences) -> np.ndarray:
        """The gain of every item for B histories, (B, N) float32."""
        return self.by_era(histories)[:, self.item]


def item_times(log: Sequences, items: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of N items on a line on which each item of a history is one step after the item before it.

    The places (N,) float64 have the least squared error over all such steps, with a little of their own squares added,
    without which a place could be anywhere where nothing links it. The second array says which items have a step at
    all, (N,) bool; where the solution is not found, which is told, no item has.
    """
    user = np.repeat(np.arange(len(log)), log.lengths)
    first = np.flatnonzero((user[1:] == user[:-1]) & (log.items[1:] != log.items[:-1]))
    pairs = coo_array((np.ones(len(first)), (log.items[first], log.items[first + 1])), shape=(items, items)).tocsr()
    both = pairs + pairs.T
    degrees = both.sum(axis=1)
    system = (diags_array(degrees + RIDGE) - both).tocsr()
    steps = pairs.sum(axis=0) - pairs.sum(axis=1)
    times, unsolved = cg(system, steps, rtol=1e-3, maxiter=MOST_ITERATIONS, M=diags_array(1 / (degrees + RIDGE)))
    if unsolved:
        print("the order of the items is not found: eras are left out")  # noqa: T201
    return times, (degrees > 0) & (not unsolved)
