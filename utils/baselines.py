"""Recommenders that need no training, with which the model is compared."""

from collections.abc import Iterator

import numpy as np
import torch

from utils.data import Sequences, check_finite
from utils.metrics import Ranks, score_ranks
from utils.util import check_count, numbers_below

SIMILARITIES = 1 << 26  # at most so many are held at once: 256 MiB


def repeat_recent(histories: Sequences, k: int) -> np.ndarray:
    """Recommend a user's own last distinct items, most recent first: (B, k) int64, -1 where there are fewer."""
    check_count(k, "k")
    count = len(histories)
    user = np.repeat(np.arange(count), histories.lengths)[::-1]  # newest first within a user
    item = histories.items[::-1].astype(np.int64)
    if item.size and item.min() < 0:
        raise ValueError(f"item ids must be 0 or more, found {item.min()}: a list has -1 for no item")
    known, number = np.unique(item, return_inverse=True)  # ids may be too large to be multiplied
    _, newest = np.unique(user * len(known) + number, return_index=True)  # first in reversed order
    newest.sort()
    user, item = user[newest], item[newest]  # users descending, each user's items newest first
    sizes = np.bincount(user, minlength=count)[::-1]  # in the order of the array
    rank = np.arange(len(user)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    lists = np.full((count, k), -1, dtype=np.int64)
    lists[user[rank < k], rank[rank < k]] = item[rank < k]
    return lists


def most_popular(popularity: np.ndarray, users: int, k: int) -> np.ndarray:
    """Recommend the k items of the highest counts (N,) to everyone: (users, min(k, N)) int64; ties by ascending id."""
    check_count(k, "k")
    ascending = np.argsort(popularity[::-1], kind="stable")  # unsigned counts could not be negated
    top = len(popularity) - 1 - ascending[::-1][:k]
    return np.broadcast_to(top, (users, len(top)))


def popularity_ranks(popularity: np.ndarray, targets: np.ndarray) -> Ranks:
    """Ranks of targets (B,) int64 among all items by their counts (N,)."""
    ascending, counts = np.sort(popularity), popularity[numbers_below(targets, len(popularity), "targets")]
    low, high = (np.searchsorted(ascending, counts, side=side) for side in ("left", "right"))
    return Ranks(torch.from_numpy(len(ascending) - high), torch.from_numpy(high - low))


def nearest_text(last_items: np.ndarray, embeddings: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """Recommend the k candidates whose text is nearest to the last item's, without that item; ties by ascending id.

    Args:
        last_items: (B,) int64.
        embeddings: (N, E) float; cosine similarity.
        candidates: (M,) int64 ids of the items that may be recommended, in any order.
        k: length of the lists.

    Returns:
        (B, k) int64, -1 where there are fewer.

    Raises:
        ValueError: an id without a row, no candidate, or k below 1.
        InputError: an embedding is not finite.
    """
    check_count(k, "k")
    candidates = np.unique(candidates)
    lists = np.full((len(last_items), k), -1, dtype=np.int64)
    width = min(k, len(candidates))
    for users, similarity in text_similarities(last_items, embeddings, candidates):
        bar = np.partition(similarity, -width, axis=1)[:, -width]  # the k-th best of each
        user, column = np.nonzero((similarity >= bar[:, None]) & (similarity > -np.inf))
        order = np.lexsort((column, -similarity[user, column], user))
        user, column = user[order], column[order]
        rank = np.arange(len(user)) - np.searchsorted(user, user)
        kept = rank < width
        lists[users[user[kept]], rank[kept]] = candidates[column[kept]]
    return lists


def nearest_text_ranks(
    last_items: np.ndarray, targets: np.ndarray, embeddings: np.ndarray, candidates: np.ndarray
) -> Ranks:
    """Ranks of targets (B,) int64 among all candidates by the similarity that `nearest_text` ranks by."""
    candidates = np.unique(candidates)
    columns = np.searchsorted(candidates, targets).clip(max=len(candidates) - 1)
    columns = torch.from_numpy(np.where(candidates[columns] == targets, columns, -1))
    ranks = Ranks(*torch.zeros(2, len(targets), dtype=torch.int64))
    for users, similarity in text_similarities(last_items, embeddings, candidates):
        for side, found in zip(ranks, score_ranks(torch.from_numpy(similarity), columns[users]), strict=True):
            side[users] = found
    return ranks


def text_similarities(
    last_items: np.ndarray, embeddings: np.ndarray, candidates: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cosine similarity of users' last items (B,) to candidates (M,), as (n,) users and (n, M) float32 at a time.

    An item's similarity to itself is -inf. Equal embeddings have equal similarities to the last bit: they are computed
    once, because a matrix product may round equal columns differently.
    """
    if not len(candidates):
        raise ValueError(f"ids must lie in [0, {len(embeddings)}), and there must be a candidate: found none")
    candidates, last_items = (numbers_below(ids, len(embeddings), "ids") for ids in (candidates, last_items))
    rows = _unit(embeddings, candidates)
    _, first, same = np.unique(rows.view(f"V{rows.strides[0]}")[:, 0], return_index=True, return_inverse=True)
    rows = rows[first]
    order = np.argsort(last_items, kind="stable")  # users with the same last item together
    at_once = max(1, SIMILARITIES // len(candidates))
    for start in range(0, len(order), at_once):
        users = order[start : start + at_once]
        wanted, user = np.unique(last_items[users], return_inverse=True)
        similarity = (_unit(embeddings, wanted) @ rows.T)[:, same][user]
        similarity[last_items[users, None] == candidates] = -np.inf
        yield users, similarity


def _unit(embeddings: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The rows of some ids scaled to length one; zero rows stay zero."""
    with np.errstate(over="ignore"):
        rows = np.asarray(embeddings[ids], dtype=np.float32)
    check_finite(rows, ids, "the embedding matrix")
    largest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12)  # so that no square overflows
    rows = rows / largest
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) + 0.0  # -0.0 becomes 0.0
