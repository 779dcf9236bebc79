"""Hit@k, NDCG@k and MRR with one target per user; candidates with equal scores share their places."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.util import check_count


class Ranks(NamedTuple):
    """Where each user's target stands among the candidates of a method.

    Its rank may be any of above + 1 to above + tied: nothing but its id tells it from the candidates it ties with.
    """

    above: Tensor  # (B,) int64 candidates with a higher score
    tied: Tensor  # (B,) int64 candidates with the target's score, itself included; 0 where it is not recommended

    def select(self, users: Tensor) -> "Ranks":
        """The ranks of some users, by a mask (B,) bool."""
        return Ranks(self.above[users], self.tied[users])


def list_ranks(ranked: Tensor, targets: Tensor) -> Ranks:
    """Ranks by place in lists (B, k) of items, whose order counts, for targets (B,) int64; -1 is no item."""
    if ranked.ndim != 2 or not ranked.shape[1] or targets.shape != ranked.shape[:1]:
        raise ValueError(f"expected one target for each list, found {tuple(targets.shape)} for {tuple(ranked.shape)}")
    hits = (ranked == targets[:, None]) & (targets >= 0)[:, None]
    return Ranks(hits.int().argmax(1), hits.any(1).long())


def score_ranks(scores: Tensor, places: Tensor) -> Ranks:
    """Ranks by scores (B, M) of all candidates, for targets at places (B,) int64; -1 where a target is no candidate.

    A score of -inf stands for an item that is not recommended to this user.

    Raises:
        ValueError: a score is NaN, or there is not one place among the candidates for each user.
    """
    if places.shape != scores.shape[:1] or (places.numel() and places.max() >= scores.shape[1]):
        raise ValueError(
            f"places must be one for each row of the scores {tuple(scores.shape)}, below {scores.shape[1]}"
        )
    if scores.isnan().any():
        raise ValueError("scores must be numbers, found NaN")
    target = scores.gather(1, places.clamp(min=0)[:, None])  # (B, 1)
    recommended = (places >= 0) & (target[:, 0] > -torch.inf)
    return Ranks((scores > target).sum(1), (scores == target).sum(1) * recommended)


class TopKAccumulator:
    """Sums Hit@k, NDCG@k (1 / log2(rank + 1)) and reciprocal ranks over batches; the denominator is all users.

    A target that ties counts with the mean of each metric over all orders of the tie. MRR is over the longest list.
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
        """Add users by the ranks of their targets; ValueError for what are no ranks."""
        if not len(ranks.above):
            return
        above, tied = (side.cpu() for side in ranks)
        if above.shape != tied.shape or above.dtype.is_floating_point or min(above.amin(), tied.amin()) < 0:
            raise ValueError(f"ranks must be (B,) whole numbers of 0 or more, found {above} and {tied}")
        # What the ranks up to each one, from 0 on, add up to: (longest list that is reached + 1,) each.
        places = torch.arange(1, min(self.ks[-1], int((above + tied).max())) + 1, dtype=torch.float64)
        gains, reciprocals = (F.pad(share.cumsum(0), (1, 0)) for share in (1 / torch.log2(places + 1), 1 / places))
        share = torch.where(tied > 0, 1 / tied.double(), 0.0)  # of each place of the tie
        for place, k in enumerate(self.ks):
            first, end = above.clamp(max=k), (above + tied).clamp(max=k)
            self.sums[2 * place] += ((end - first) * share).sum()
            self.sums[2 * place + 1] += ((gains[end] - gains[first]) * share).sum()
        # Up to the last k, the longest list.
        self.sums[-1] += ((reciprocals[end] - reciprocals[first]) * share).sum()
        self.users += len(above)

    def reduce(self) -> dict[str, float]:
        """Means over all users so far, by name: hit@1, ndcg@1, …, mrr; NaN without users."""
        names = [f"{metric}@{k}" for k in self.ks for metric in ("hit", "ndcg")] + ["mrr"]
        users = self.users or float("nan")
        return {name: value / users for name, value in zip(names, self.sums.tolist(), strict=True)}
