"""Eras: the time that a history has come to, and the items that go with it, told by the order of a log alone.

What people take changes with the years. A log without dates still shows it: whoever took both, took this item before
that one. So all items are put on one line of time, the line is cut into eras of as many interactions each, and counted
is how often a history that has come to one era goes on with an item of another. Not of the paper.

Letters of the shapes as in utils/data.py: B users, N items.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import cg

from utils.data import Sequences
from utils.util import numbers_below

ERAS = 80
UNKNOWN = ERAS  # of an item that the log does not have, and of a history without any other
LATEST = 3  # items of a history that tell its era
SMOOTHING = 3.0  # eras: deviation of the Gaussian that counts are spread with
RIDGE = 0.3  # what the square of an item's place counts, if that of a step between two items counts 1
PRIOR = 20.0  # spread as the whole log and added to the smoothed counts of every era


class Eras(NamedTuple):
    """The eras of N items, and what follows what."""

    line: np.ndarray  # (N,) float64, the share of the log with earlier items, in [0, 1]; 0 for an unknown one
    item: np.ndarray  # (N,) int64, era of each item
    gain: np.ndarray  # (ERAS + 1, ERAS + 1) float32, by era of history and item, in nats; see `of`

    @classmethod
    def of(cls, log: Sequences, items: int) -> "Eras":
        """The eras of a log, in which the targets that are to be predicted must not be.

        The gain of an item's era for a history's is the logarithm of how many times more often such histories end with
        an item of it than all of the log is of it; 0 where one of the two is unknown.
        """
        counts = np.bincount(numbers_below(log.items, items, "items"), minlength=items)
        share = counts / max(1, counts.sum())
        order, line = np.argsort(item_times(log, items), kind="stable"), np.zeros(items)
        line[order] = np.cumsum(share[order]) - share[order] / 2
        item = np.where(counts > 0, (line * ERAS).astype(np.int64).clip(max=ERAS - 1), UNKNOWN)
        line[counts == 0] = 0

        before, targets = log.select(np.flatnonzero(log.lengths)).split_targets()
        ended, gain = np.zeros((ERAS + 1, ERAS + 1)), np.zeros((ERAS + 1, ERAS + 1), dtype=np.float32)
        np.add.at(ended, (cls(line, item, gain).of_histories(before), item[targets]), 1)
        ended = gaussian_filter(ended[:ERAS, :ERAS], SMOOTHING)
        usual = gaussian_filter1d(np.bincount(item, weights=share, minlength=ERAS + 1)[:ERAS], SMOOTHING) + 1e-9
        expected = (ended.sum(1, keepdims=True) + PRIOR) * usual
        gain[:ERAS, :ERAS] = np.log((ended + PRIOR * usual) / expected)
        return cls(line, item, gain)

    def of_histories(self, histories: Sequences) -> np.ndarray:
        """The era that each history has come to, (B,) int64: that of the mean of its latest known items."""
        latest = histories.last(LATEST)
        user = np.repeat(np.arange(len(latest)), latest.lengths)
        known = self.item[latest.items] != UNKNOWN
        count = np.bincount(user[known], minlength=len(latest))
        mean = np.bincount(user, weights=self.line[latest.items], minlength=len(latest)) / np.maximum(1, count)
        return np.where(count > 0, (mean * ERAS).astype(np.int64).clip(max=ERAS - 1), UNKNOWN)

    def by_era(self, histories: Sequences) -> np.ndarray:
        """The gain of every era, the unknown one last, for B histories, (B, ERAS + 1) float32."""
        return self.gain[self.of_histories(histories)]

    def gains(self, histories: Sequences) -> np.ndarray:
        """The gain of every item for B histories, (B, N) float32."""
        return self.by_era(histories)[:, self.item]


def item_times(log: Sequences, items: int) -> np.ndarray:
    """The places of N items on a line, (N,) float64, on which each item of a history is one after the item before it.

    Solved by least squares, with RIDGE times the squares of all places added, which draws items of few histories to 0.
    """
    user = np.repeat(np.arange(len(log)), log.lengths)
    first = np.flatnonzero((user[1:] == user[:-1]) & (log.items[1:] != log.items[:-1]))
    pairs = coo_array((np.ones(len(first)), (log.items[first], log.items[first + 1])), shape=(items, items)).tocsr()
    both = pairs + pairs.T
    degrees = both.sum(axis=1) + RIDGE
    system = diags_array(degrees) - both
    steps = pairs.sum(axis=0) - pairs.sum(axis=1)
    times, _ = cg(system.tocsr(), steps, rtol=1e-5, maxiter=500, M=diags_array(1 / degrees))
    return times
