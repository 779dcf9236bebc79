"""Scores of recommenders that train no network, exact over the whole catalog, for chunks of users.

What each needs: `repeat_recent`, `nearest_text` and `whitened_text` need nothing of the domain but its catalog;
`popular`, `popular_in_era`, `weighted_rows` and `ease_score` need its log, the histories of train.pkl.

Letters of the shapes as in utils/data.py: B users, N items, E embedding width, k length of a list.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import linalg
from scipy.sparse import coo_array, csr_array

from utils.data import Sequences, cumulate
from utils.eras import Eras
from utils.metrics import Ranks
from utils.util import check_count, numbers_below
from utils.whitening import unit_rows

DECAY, REACH = 0.7, 12  # a history counts with 0.7^lag of its last 12 items
PAIR_DECAY, PAIR_REACH, BACKWARDS = 0.6, 4, 0.3  # pairs of a log: 0.6^(distance - 1) up to distance 4, 0.3 of it back
UNSEEN = 0.3  # what popularity adds to every item's count
EASE_ITEMS, EASE_L2 = 6_000, 100.0  # the largest catalog whose (N, N) matrix is inverted, and the L2 of that
SIMILARITIES = 1 << 26  # scores that are held at once: 256 MiB

Scorer = Callable[[Sequences], np.ndarray]  # B histories -> (B, N) float32, higher is better, -inf: not recommended


def equal_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of each distinct row of (N, E), and which of those each row equals: `rows[first][same] == rows`."""
    rows = np.ascontiguousarray(rows)
    _, first, same = np.unique(rows.view(f"V{rows.strides[0]}")[:, 0], return_index=True, return_inverse=True)
    return first, same


def history_weights(histories: Sequences, items: int, decay: float = DECAY, reach: int = REACH) -> csr_array:
    """What each of N items counts in B histories, (B, N) float32: decay^lag of the last `reach`, scaled to the sum 1.

    A repeated item has the sum of its weights; the row of an empty history is empty.
    """
    recent = histories.last(reach)
    lag = np.repeat(recent.offsets[1:], recent.lengths) - 1 - np.arange(len(recent.items))
    total = np.cumsum(float(decay) ** np.arange(reach))[recent.lengths - 1]  # of the weights of each history
    return item_rows(recent, items, decay**lag / np.repeat(total, recent.lengths))


def item_rows(histories: Sequences, items: int, values: np.ndarray) -> csr_array:
    """A matrix (B, N) float32 with the `values` (n,) of the histories' items; those of a repeated item add up."""
    ids = numbers_below(histories.items, items, "items")
    rows = csr_array((values.astype(np.float32), ids, histories.offsets), shape=(len(histories), items), copy=True)
    rows.sum_duplicates()
    return rows


class LogStatistics(NamedTuple):
    """What the histories of a log say about N items."""

    share: np.ndarray  # (N,) float32, popularity: (count + 0.3) / sum
    transitions: csr_array  # (N, N) float32, what comes near after an item: rows sum to 1, or are empty
    cosine: csr_array  # (N, N) float32, the same counts divided by the roots of (row sum + 1) and (column sum + 1)
    eras: Eras

    @classmethod
    def of(cls, log: Sequences, items: int) -> "LogStatistics":
        """The statistics of a log; targets that are to be predicted must not be in it."""
        counts = np.bincount(numbers_below(log.items, items, "items"), minlength=items) + UNSEEN
        pairs = count_pairs(log, items)
        row, column = np.repeat(np.arange(items), np.diff(pairs.indptr)), pairs.indices
        out, into = pairs.sum(axis=1), pairs.sum(axis=0)

        def scaled(sums: np.ndarray) -> csr_array:
            return csr_array(((pairs.data / sums).astype(np.float32), column, pairs.indptr), shape=pairs.shape)

        cosine = scaled(np.sqrt((out[row] + 1) * (into[column] + 1)))
        return cls((counts / counts.sum()).astype(np.float32), scaled(out[row]), cosine, Eras.of(log, items))


class Statistics(NamedTuple):
    """What the scores of a catalog of N items are made of, once: its whitened texts, and what a log says."""

    rows: np.ndarray  # (N, E) float32, embeddings as `whiten` leaves them
    log: LogStatistics | None  # None without a log
    ease: np.ndarray | None  # (N, N) float32, of EASE; None without a log, or above EASE_ITEMS items

    @classmethod
    def of(cls, rows: np.ndarray, log: Sequences | None) -> "Statistics":
        """The statistics of whitened rows (N, E) and a log, which must not hold the targets to be predicted."""
        items = len(rows)
        if log is None:
            return cls(rows, None, None)
        return cls(rows, LogStatistics.of(log, items), ease(log, items) if items <= EASE_ITEMS else None)


def count_pairs(log: Sequences, items: int) -> csr_array:
    """Weighted counts (N, N) float32 of an item before another: by distance, and a part of each backwards."""
    user = np.repeat(np.arange(len(log)), log.lengths)
    pairs = csr_array((items, items), dtype=np.float32)
    for distance in range(1, PAIR_REACH + 1):
        first = np.flatnonzero(user[distance:] == user[:-distance])
        first = first[log.items[first] != log.items[first + distance]]
        weights = np.full(len(first), PAIR_DECAY ** (distance - 1), dtype=np.float32)
        pairs += coo_array((weights, (log.items[first], log.items[first + distance])), shape=pairs.shape).tocsr()
    pairs = csr_array(pairs + np.float32(BACKWARDS) * pairs.T)
    pairs.sum_duplicates()
    return pairs


def ease(log: Sequences, items: int, l2: float = EASE_L2) -> np.ndarray:
    """The item-item weights (N, N) float32 of EASE (Steck 2019): ridge regression of each item on all the others.

    It inverts an (N, N) matrix: ValueError above EASE_ITEMS items.
    """
    if items > EASE_ITEMS:
        raise ValueError(f"EASE inverts a matrix of the catalog, which may have {EASE_ITEMS} items, found {items}")
    taken = item_rows(log, items, np.ones(len(log.items)))
    taken.data[:] = 1
    inverse = linalg.inv((taken.T @ taken).toarray().astype(np.float64) + l2 * np.eye(items), overwrite_a=True)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def repeat_recent(items: int) -> Scorer:
    """Recommend the user's own items, the most recent first, and no others. Needs nothing of the domain."""

    def score(histories: Sequences) -> np.ndarray:
        scores = np.full((len(histories), items), -np.inf, dtype=np.float32)
        user, place = places(histories)
        scores[user, histories.items] = place  # of a repeated item the last place is kept
        return scores

    return score


def places(histories: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """The user and the place in the history, from 0 on, of every item of `histories.items`."""
    user = np.repeat(np.arange(len(histories)), histories.lengths)
    return user, np.arange(len(histories.items)) - histories.offsets[user]


def repeats(histories: Sequences, targets: np.ndarray) -> np.ndarray:
    """Whose target (U,) is in the history: (U,) bool."""
    user, _ = places(histories)
    repeated = np.zeros(len(histories), dtype=bool)
    repeated[user[histories.items == targets[user]]] = True
    return repeated


def distinct_items(histories: Sequences, candidates: np.ndarray) -> Sequences:
    """The items of each history that are candidates, (N,) bool, once each and by ascending id."""
    user, _ = places(histories)
    kept = candidates[histories.items]
    user, item = np.divmod(np.unique(user[kept] * len(candidates) + histories.items[kept]), len(candidates))
    return Sequences(histories.users, item, cumulate(np.bincount(user, minlength=len(histories))))


def popular(share: np.ndarray) -> Scorer:
    """Recommend the items of the highest counts or shares (N,) to everyone. Needs the domain's log."""
    share = share.astype(np.float32)
    return lambda histories: np.tile(share, (len(histories), 1))


def popular_in_era(share: np.ndarray, eras: Eras) -> Scorer:
    """Recommend by popularity (N,) times how well an item goes with the era of the history. Needs the domain's log."""
    return lambda histories: share * np.exp(eras.by_era(histories))[:, eras.item]


def text_score(rows: np.ndarray, reach: int = REACH) -> Scorer:
    """Cosine of items (N, E), of unit length, to the decayed mean of a history's last `reach`, without these items.

    They would be the nearest, as every text is to itself. Equal rows have equal scores to the last bit.
    """
    first, same = equal_rows(rows)
    distinct = np.ascontiguousarray(rows[first].T)  # (E, distinct)

    def score(histories: Sequences) -> np.ndarray:
        weights = history_weights(histories, len(rows), reach=reach)
        scores = (unit_rows(weights @ rows) @ distinct)[:, same]
        scores[weights.nonzero()] = -np.inf
        return scores

    return score


def nearest_text(embeddings: np.ndarray) -> Scorer:
    """Recommend the items whose text is nearest to the last item's. Needs nothing of the domain."""
    return text_score(unit_rows(embeddings), reach=1)


def whitened_text(rows: np.ndarray) -> Scorer:
    """Recommend what is nearest to the decayed mean of the history; rows (N, E) are whitened. Needs nothing else."""
    return text_score(rows)


def weighted_rows(matrix: csr_array) -> Scorer:
    """Recommend by the history-weighted mean of an item-item matrix's rows (N, N). Needs the domain's log.

    An item that no item of the history leads to has score 0, and ties with all such items.
    """
    return lambda histories: (history_weights(histories, matrix.shape[0]) @ matrix).toarray()


def ease_score(weights: np.ndarray) -> Scorer:
    """Recommend by the sum of the rows of EASE's weights (N, N) over the distinct items of a history."""

    def score(histories: Sequences) -> np.ndarray:
        taken = item_rows(histories, len(weights), np.ones(len(histories.items)))
        taken.data[:] = 1
        return taken @ weights

    return score


def listed(lists: dict[Any, list[int]], items: int) -> Scorer:
    """Recommend the lists of another recommender, best first: those of each user, by the keys in `users`."""

    def score(histories: Sequences) -> np.ndarray:
        scores = np.full((len(histories), items), -np.inf, dtype=np.float32)
        for row, user in enumerate(histories.users.tolist()):
            backwards = lists[user][::-1]  # of an item that is there twice the better place is kept
            scores[row, backwards] = np.arange(1 - len(backwards), 1)
        return scores

    return score


def scored(
    score: Scorer, histories: Sequences, candidates: np.ndarray, exclude_history: bool
) -> Iterator[tuple[slice, np.ndarray]]:
    """The scores (n, N) of some users at a time, with the slice of them; -inf for all that may not be recommended."""
    at_once = max(1, SIMILARITIES // len(candidates))
    for start in range(0, len(histories), at_once):
        rows = slice(start, min(start + at_once, len(histories)))
        part = histories.select(np.arange(rows.start, rows.stop))
        scores = score(part)
        scores[:, ~candidates] = -np.inf
        if exclude_history:
            scores[places(part)[0], part.items] = -np.inf
        yield rows, scores


def rank_by(
    score: Scorer, histories: Sequences, targets: np.ndarray, candidates: np.ndarray, exclude_history: bool = False
) -> Ranks:
    """Exact ranks of the targets among all candidates by a score.

    Args:
        score: of the histories' next items.
        histories: the B histories, without their targets.
        targets: (B,) int64.
        candidates: (N,) bool, the items that may be recommended.
        exclude_history: leave a user's own items out.
    """
    targets = numbers_below(targets, len(candidates), "targets")
    above, tied = np.zeros((2, len(targets)), dtype=np.int64)
    for rows, scores in scored(score, histories, candidates, exclude_history):
        target = scores[np.arange(len(scores)), targets[rows], None]  # (n, 1)
        above[rows] = np.count_nonzero(scores > target, axis=1)
        tied[rows] = np.count_nonzero(scores == target, axis=1) * (target[:, 0] > -np.inf)
    return Ranks(torch.from_numpy(above), torch.from_numpy(tied))


def lists_by(
    score: Scorer, histories: Sequences, candidates: np.ndarray, k: int, exclude_history: bool = False
) -> np.ndarray:
    """The k best candidates of each user by a score, (B, k) int64; ties by ascending id, -1 where there are fewer."""
    check_count(k, "k")
    lists = np.full((len(histories), k), -1, dtype=np.int64)
    width = min(k, len(candidates))
    for rows, scores in scored(score, histories, candidates, exclude_history):
        bar = np.partition(scores, -width, axis=1)[:, -width]  # the k-th best of each
        user, item = np.nonzero((scores >= bar[:, None]) & (scores > -np.inf))
        order = np.lexsort((item, -scores[user, item], user))
        user, item = user[order], item[order]
        rank = np.arange(len(user)) - np.searchsorted(user, user)
        kept = rank < width
        lists[rows.start + user[kept], rank[kept]] = item[kept]
    return lists
