"""Hit@k, NDCG@k and MRR with one target per user."""

import torch
from torch import Tensor


def target_ranks(ranked: Tensor, targets: Tensor) -> Tensor:
    """Place from 1 of each target in its list, 0 where it is not there: (B, k) and (B,) int64 -> (B,) int64."""
    hits = ranked == targets[:, None]
    return torch.where(hits.any(1), hits.int().argmax(1) + 1, 0)


class TopKAccumulator:
    """Sums Hit@k, NDCG@k (1 / log2(rank + 1)) and reciprocal ranks over batches; the denominator is all users."""

    def __init__(self, ks: list[int]):
        self.ks = sorted(ks)
        self.reset()

    def reset(self) -> None:
        """Forget everything accumulated."""
        self.sums = torch.zeros(2 * len(self.ks) + 1, dtype=torch.float64)
        self.users = 0

    def accumulate(self, ranks: Tensor) -> None:
        """Add users by the rank (B,) int64 of their target, 0 where it was not recommended."""
        ranks = ranks.double().cpu()
        found = ranks > 0
        gain = torch.where(found, 1 / torch.log2(ranks + 1), 0.0)
        for place, k in enumerate(self.ks):
            within = found & (ranks <= k)
            self.sums[2 * place] += within.sum()
            self.sums[2 * place + 1] += gain[within].sum()
        self.sums[-1] += torch.where(found, 1 / ranks, 0.0).sum()
        self.users += len(ranks)

    def reduce(self) -> dict[str, float]:
        """Means over all users so far, by name: hit@1, ndcg@1, …, mrr; NaN without users."""
        names = [f"{metric}@{k}" for k in self.ks for metric in ("hit", "ndcg")] + ["mrr"]
        users = self.users or float("nan")
        return {name: value / users for name, value in zip(names, self.sums.tolist(), strict=True)}
