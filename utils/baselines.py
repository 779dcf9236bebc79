"""Recommendations that need no training, to hold the model against."""

import numpy as np

from utils.data import Sequences


def repeat_recent(histories: Sequences, k: int) -> np.ndarray:
    """The user's own last distinct items, most recent first: (B, k) int64, -1 where there are fewer."""
    count = len(histories)
    user = np.repeat(np.arange(count), histories.lengths)[::-1]  # newest first within a user
    item = histories.items[::-1].astype(np.int64)
    _, newest = np.unique(user * (item.max() + 1) + item, return_index=True)  # first in reversed order
    newest.sort()
    user, item = user[newest], item[newest]  # users descending, each user's items newest first
    sizes = np.bincount(user, minlength=count)[::-1]  # in the order of the array
    place = np.arange(len(user)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    lists = np.full((count, k), -1, dtype=np.int64)
    lists[user[place < k], place[place < k]] = item[place < k]
    return lists


def most_popular(popularity: np.ndarray, users: int, k: int) -> np.ndarray:
    """The k items with the highest counts (N,), the same for everyone: (B, min(k, N)) int64; ties by ascending id."""
    top = np.argsort(-popularity, kind="stable")[:k]
    return np.broadcast_to(top, (users, len(top)))


def nearest_text(last_items: np.ndarray, embeddings: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """The k candidates whose text is nearest to the user's last item, itself left out.

    Args:
        last_items: (B,) int64.
        embeddings: (N, E) float; cosine similarity.
        candidates: (M,) int64 item ids that may be recommended.
        k: length of the lists.

    Returns:
        (B, k) int64, -1 where there are fewer.
    """
    wanted, user = np.unique(last_items, return_inverse=True)
    pool = _unit(embeddings[candidates])
    width = min(k, len(candidates))
    found = np.full((len(wanted), k), -1, dtype=np.int64)
    for start in range(0, len(wanted), 1024):  # bounds memory at 1024 x M similarities
        chunk = wanted[start : start + 1024]
        similarity = _unit(embeddings[chunk]) @ pool.T  # (chunk, M)
        similarity[chunk[:, None] == candidates] = -np.inf
        top = np.argpartition(-similarity, width - 1, axis=1)[:, :width]
        top = np.take_along_axis(top, np.lexsort((top, -np.take_along_axis(similarity, top, 1)), axis=1), axis=1)
        missing = np.isneginf(np.take_along_axis(similarity, top, 1))
        found[start : start + 1024, :width] = np.where(missing, -1, candidates[top])
    return found[user]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; zero rows stay zero."""
    rows = np.asarray(rows, dtype=np.float32)
    largest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12)  # first, so that no square overflows
    rows = rows / largest
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
