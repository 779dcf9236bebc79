"""Hit@k, NDCG@k and MRR with one target per user; candidates with equal scores share their ranks."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.util import check_count


class Ranks(NamedTuple):
    """Where each user's target stands among the candidates: at one of the ranks above + 1 to above + tied."""

    above: Tensor  # (B,) int64, candidates with a higher score
    tied: Tensor  # (B,) int64, candidates with the target's score, itself included; 0 where it is not recommended

    def select(self, users: Tensor) -> "Ranks":
        """The ranks of some users, by a mask (B,) bool."""
        return Ranks(self.above[users], self.tied[users])


def list_ranks(ranked: Tensor, targets: Tensor) -> Ranks:
    """Ranks of targets (B,) int64 by their position in lists (B, k) of items, best first; -1 is no item.

    >>> list_ranks(torch.tensor([[7, 3, 5], [7, 3, 5]]), torch.tensor([3, 4]))
    Ranks(above=tensor([1, 0]), tied=tensor([1, 0]))
    """
    if ranked.ndim != 2 or not ranked.shape[1] or targets.shape != ranked.shape[:1]:
        raise ValueError(f"expected one target for each list, found {tuple(targets.shape)} for {tuple(ranked.shape)}")
    hits = (ranked == targets[:, None]) & (targets >= 0)[:, None]
    return Ranks(hits.int().argmax(1), hits.any(1).long())


def score_ranks(scores: Tensor, places: Tensor) -> Ranks:
    """Ranks of targets by the scores (B, M) of all candidates, of which they are those at `places` (B,) int64.

    A place of -1 stands for a target that is no candidate, a score of -inf for an item that is not recommended.

    >>> score_ranks(torch.tensor([[0.5, 0.9, 0.5]]), torch.tensor([2]))
    Ranks(above=tensor([1]), tied=tensor([2]))

    Raises:
        ValueError: a score is NaN, or there is not one place among the candidates for each user.
    """
    if places.shape != scores.shape[:1] or (places.numel() and places.max() >= scores.shape[1]):
        raise ValueError(f"places must be one for each row of the scores {tuple(scores.shape)}, and exist there")
    if scores.isnan().any():
        raise ValueError("scores must be numbers, found NaN")
    target = scores.gather(1, places.clamp(min=0)[:, None])  # (B, 1)
    recommended = (places >= 0) & (target[:, 0] > -torch.inf)
    return Ranks((scores > target).sum(1), (scores == target).sum(1) * recommended)


def user_metrics(ranks: Ranks, ks: list[int]) -> Tensor:
    """Hit@k and NDCG@k for each of the ascending ks, and MRR, of every user: (B, 2 * len(ks) + 1) float64.

    >>> user_metrics(Ranks(above=torch.tensor([0, 1]), tied=torch.tensor([2, 1])), [1]).tolist()  # rank 1 or 2; rank 2
    [[0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]

    Raises:
        ValueError: ranks that are no whole numbers of 0 or more.
    """
    above, tied = (side.cpu() for side in ranks)
    if above.shape != tied.shape or above.dtype.is_floating_point or min(above.amin(), tied.amin()) < 0:
        raise ValueError(f"ranks must be (B,) whole numbers of 0 or more, found {above} and {tied}")
    ranks = torch.arange(1, min(ks[-1], int((above + tied).max())) + 1, dtype=torch.float64)
    # Entry r of each is the sum of the gains of ranks 1 to r, from r = 0 on.
    gains, reciprocals = (F.pad(gain.cumsum(0), (1, 0)) for gain in (1 / torch.log2(ranks + 1), 1 / ranks))
    weight = torch.where(tied > 0, 1 / tied.double(), 0.0)  # of each rank that the target may have
    columns = []
    for k in ks:
        first, end = above.clamp(max=k), (above + tied).clamp(max=k)
        columns += [(end - first) * weight, (gains[end] - gains[first]) * weight]
    columns.append((reciprocals[end] - reciprocals[first]) * weight)  # up to the last k, the longest list
    return torch.stack(columns, dim=1)


class TopKAccumulator:
    """Mean Hit@k, NDCG@k (1 / log2(rank + 1)) and MRR (over the longest list) of all users, batch by batch.

    A target that ties counts with the mean of each metric over all orders of the tie.

    >>> accumulator = TopKAccumulator([1, 3])
    >>> accumulator.accumulate(Ranks(above=torch.tensor([0, 1]), tied=torch.tensor([2, 1])))  # rank 1 or 2; rank 2
    >>> {name: round(value, 3) for name, value in accumulator.reduce().items()}
    {'hit@1': 0.25, 'ndcg@1': 0.25, 'hit@3': 1.0, 'ndcg@3': 0.723, 'mrr': 0.625}
    """

    def __init__(self, ks: list[int]):
        for k in ks or [None]:
            check_count(k, "ks")
        self.ks = sorted(ks)
        self.reset()

    def reset(self) -> None:
        """Forget everything accumulated."""
        self.sums = torch.zeros(2 * len(self.ks) + 1, dtype=torch.float64)
        self.users = 0

    def accumulate(self, ranks: Ranks) -> None:
        """Add users by the ranks of their targets; ValueError unless these are whole numbers of 0 or more."""
        if not len(ranks.above):
            return
        self.sums += user_metrics(ranks, self.ks).sum(0)
        self.users += len(ranks.above)

    def reduce(self) -> dict[str, float]:
        """Means over all users so far, by name: hit@1, ndcg@1, …, mrr; NaN without users."""
        names = [f"{metric}@{k}" for k in self.ks for metric in ("hit", "ndcg")] + ["mrr"]
        users = self.users or float("nan")
        return {name: value / users for name, value in zip(names, self.sums.tolist(), strict=True)}
