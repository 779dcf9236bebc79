"""From the distributions of the next item's K codes to items of the catalog: exact, beam and free search.

All work on all B users of a batch at once. An item's score is the sum of its K log-probabilities.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.data import Sequences
from utils.errors import InputError
from utils.metrics import Ranks, score_ranks
from utils.Trie import Trie
from utils.util import check_count

SCAN_USERS = 48  # users scored together: a code's log-probabilities fill three cache lines
SCAN_ITEMS = 1 << 13  # items scored together: their scores stay in the cache
FIRST_ITEMS = 1 << 11  # items that a scan scores first; the k-th best of them is the bar that others must reach

# Costs on a CPU, measured by benchmarks/search.py. The unit is scoring one item for one user in a scan.
SCAN_SETUP = 20  # users: a scan costs as much for each item as if there were so many more
POSTING_COST = 32  # of scoring one item in best-first search
BEST_FIRST_FROM = 1 << 23  # where a scan costs more than this per user, best-first search is tried

MOST_CODES = 1 << 12  # codes that best-first search looks at for one user, of K * 15,360 in the release
PROBED = 4  # users that try best-first search before the others of their batch
FIRST_POSTINGS = 1 << 10  # items that its first round scores for one user; every later round takes eight times as many
POSTINGS_AT_ONCE = 1 << 18  # items that it scores together, which bounds its memory
LAST = torch.iinfo(torch.int64).max
MARGIN = 1e-3  # nats: more than rounding changes in a sum of a few float32 log-probabilities


class TopK(NamedTuple):
    """The k best items of each user, best first; -1 and -inf where the search found fewer."""

    items: Tensor  # (B, k) int64 item ids; of `free_search` also -1 with a score, for codes that are no item's
    scores: Tensor  # (B, k) float32, sums of log-probabilities in nats


def exact_search(logits: Tensor, trie: Trie, k: int) -> TopK:
    """The k best items of the catalog, proven to be so at any size; ties by ascending id.

    Args:
        logits: (B, K, V) float32.
        trie: the candidates; on the device of the logits.
        k: length of the lists.

    Raises:
        ValueError: logits of another shape, type or device or not finite, or k below 1.
    """
    check_arguments(logits, trie, k)
    log_probs = logits.log_softmax(-1)  # (B, K, V)
    best = empty_topk(len(logits), k, logits.device)
    unproven = torch.arange(len(logits), device=logits.device)
    setup = SCAN_SETUP / max(1, len(logits))  # each user's part of it
    codes = trie.codebook.per_item * trie.codebook.size
    if len(trie) * (1 + setup) > BEST_FIRST_FROM and codes > MOST_CODES:
        # A few users show whether best-first search pays; the others try it only if it does.
        probes, others = unproven[:PROBED], unproven[PROBED:]
        unproven = _best_first_into(best, log_probs, trie, probes, setup * len(probes))
        if len(others) and len(unproven) < len(probes):
            others = _best_first_into(best, log_probs, trie, others, SCAN_SETUP)
        unproven = torch.cat([unproven, others])
    unproven = unproven.sort().values
    for start in range(0, len(unproven), SCAN_USERS):
        users = unproven[start : start + SCAN_USERS]
        part = log_probs if len(users) == len(logits) else log_probs[users]  # no copy of all users
        best.items[users], best.scores[users] = scan(part, trie, k)
    return best


def check_arguments(logits: Tensor, trie: Trie, k: int) -> None:
    """ValueError unless logits are (B, K, V) float32, finite and on the catalog's device, and k is 1 or more."""
    check_count(k, "k")
    if not isinstance(logits, Tensor) or logits.dtype != torch.float32:
        raise ValueError(f"logits must be float32, found {getattr(logits, 'dtype', type(logits))}: logits.float()")
    per_item, vocabulary = trie.codebook.per_item, trie.codebook.vocabulary
    if logits.shape[1:] != (per_item, vocabulary):
        raise ValueError(f"logits must be (B, {per_item}, {vocabulary}), found {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ValueError("logits must be finite, found NaN or infinity: the model's weights or inputs are damaged")
    if logits.device != trie.items.device:
        raise ValueError(f"logits are on {logits.device}, the catalog on {trie.items.device}: use Trie.to")


def check_targets(logits: Tensor, top: TopK, targets: Tensor) -> Tensor:
    """Targets (B, K) as int64; ValueError unless they are codes, and logits and lists are of as many users."""
    users, size = (len(logits), logits.shape[1]), logits.shape[2] - 1
    if targets.shape != users or len(top.items) != len(logits) or targets.dtype.is_floating_point:
        raise ValueError(
            f"targets must be {users} codes for lists of {users[0]} users, found {tuple(targets.shape)} "
            f"{targets.dtype} for {len(top.items)}"
        )
    if targets.numel() and (targets.min() < 0 or targets.max() >= size):
        raise ValueError(f"targets must be codes in [0, {size}), found {targets.min()} to {targets.max()}")
    return targets.long()


def rank_targets(logits: Tensor, trie: Trie, top: TopK, targets: Tensor) -> Ranks:
    """Exact ranks of the targets that the lists `top` have; any other target counts as not recommended.

    Args:
        logits: (B, K, V) float32.
        trie: the candidates.
        top: what `exact_search` found for them.
        targets: (B, K) int64 codes of the targets, which must be candidates.

    Raises:
        ValueError: targets are no codes, or not one row for each user.
    """
    targets = check_targets(logits, top, targets)
    log_probs = logits.log_softmax(-1)
    scores = item_scores(log_probs, torch.arange(len(targets), device=targets.device), targets)[:, None]  # (B, 1)
    tied = ((top.scores == scores) & (top.items >= 0)).sum(1)
    # A target that ties with the last item of a list may tie with items beyond it, too.
    (further,) = ((top.scores[:, -1] == scores[:, 0]) & (top.items[:, -1] >= 0)).nonzero(as_tuple=True)
    for start in range(0, len(further), SCAN_USERS):
        users = further[start : start + SCAN_USERS]
        table = log_probs[users].permute(1, 2, 0).flatten(0, 1).contiguous()
        tied[users] = sum((part == scores[users, 0]).sum(0) for part in scan_scores(table, trie))
    return Ranks((top.scores > scores).sum(1), tied)


def item_scores(log_probs: Tensor, user: Tensor, codes: Tensor) -> Tensor:
    """Scores (n,) of items of codes (n, K) for one user each, a row of (B, K, V); added up as the searches do."""
    scores = log_probs[user, 0, codes[:, 0]]
    for slot in range(1, log_probs.shape[1]):
        scores += log_probs[user, slot, codes[:, slot]]
    return scores


def leave_out(
    logits: Tensor, top: TopK, ranks: Ranks, targets: Tensor, pairs: tuple[Tensor, Tensor, Tensor], k: int
) -> tuple[TopK, Ranks]:
    """Lists of k items and ranks of the targets as if some candidates did not exist for some users.

    Args:
        logits: (B, K, V) float32.
        top: what `exact_search` found with a k larger by the most items that one user does without.
        ranks: what `rank_targets` found in them.
        targets: (B, K) int64 codes.
        pairs: user (n,), item (n,) and codes (n, K), int64, of what is left out: each pair once, candidates only.
        k: length of the lists.
    """
    user, item, codes = pairs
    log_probs, users = logits.log_softmax(-1), torch.arange(len(logits), device=logits.device)
    scores, wanted = item_scores(log_probs, user, codes), item_scores(log_probs, users, targets)[user]
    above = ranks.above - torch.bincount(user[scores > wanted], minlength=len(users))
    tied = ranks.tied - torch.bincount(user[scores == wanted], minlength=len(users))
    span = int(top.items.max().maximum(item.max())) + 1 if len(item) else 1
    left = torch.isin(users[:, None] * span + top.items, user * span + item) | (top.items < 0)
    order = left.int().argsort(dim=1, stable=True)[:, :k]
    items, best = top.items.masked_fill(left, -1), top.scores.masked_fill(left, -torch.inf)
    # A target beyond the lists has no ties there, even if an item left out has its score.
    return TopK(items.gather(1, order), best.gather(1, order)), Ranks(above, tied.clamp(min=0))


def rank_found(logits: Tensor, trie: Trie, top: TopK, targets: Tensor) -> Ranks:
    """As `rank_targets`, in lists of `beam_search`: beyond a list's end it knows only the scores of equal codes."""
    targets = check_targets(logits, top, targets)
    found_node = trie.find(targets)
    if not len(trie):
        return Ranks(torch.zeros_like(found_node), torch.zeros_like(found_node))
    node, bounds = found_node.clamp(min=0), trie.starts[-1].long()
    first, sharing = trie.items[bounds[node]], bounds[node + 1] - bounds[node]  # (B,) lowest id, and how many
    found = (top.items == first[:, None]) & (found_node >= 0)[:, None]
    rank = found.int().argmax(1)  # (B,)
    scores = top.scores.gather(1, rank[:, None])
    listed = sharing.minimum(top.items.shape[1] - rank)
    tied = (top.scores == scores).sum(1) - listed + sharing
    return Ranks((top.scores > scores).sum(1), tied * found.any(1))


def best_scored(scores: Tensor, items: Tensor, k: int) -> TopK:
    """The k best candidates by scores (B, M) float32, whose ids are `items` (M,) int64; ties by ascending id.

    Ids are ascending, and an item with a score of -inf is not recommended.
    """
    blocks = F.pad(scores, (0, 0, 0, -len(scores) % 8)).T.clone(memory_format=torch.contiguous_format)
    top = best_of_blocks(iter([blocks]), items, len(scores), k)
    return TopK(top.items.masked_fill(top.scores == -torch.inf, -1), top.scores)


class ItemSearch:
    """Exact search and ranks for a model that predicts items, whose scores are products of vectors."""

    def __init__(self, vectors: Tensor, items: Tensor, k: int, row: Tensor | None = None):
        """Lists of k items among M candidates.

        Args:
            vectors: (n, D) float32.
            items: (M,) int64 ids of the candidates, ascending.
            k: length of the lists.
            row: (M,) int64, of `vectors` for each candidate, so that equal ones have equal scores; None: one for each.

        Raises:
            ValueError: not one id for each candidate, ids that do not ascend, or k below 1.
        """
        check_count(k, "k")
        candidates = len(vectors) if row is None else len(row)
        if items.shape != (candidates,) or not (items.diff() > 0).all():
            raise ValueError(f"ids must ascend, one for each of {candidates} items, found {tuple(items.shape)}")
        self.vectors, self.items, self.k, self.row = vectors, items, k, row

    def scores(self, queries: Tensor) -> Tensor:
        """Scores of all candidates (B, M) float32, from queries (B, D).

        Raises:
            InputError: a score is not finite.
            ValueError: queries of another width.
        """
        if queries.shape[1:] != self.vectors.shape[1:]:
            raise ValueError(f"queries must be (B, {self.vectors.shape[1]}), found {tuple(queries.shape)}")
        scores = queries @ self.vectors.T
        if not torch.isfinite(scores).all():
            raise InputError(
                "scores of items are not finite: the weights are damaged, or an embedding is far too large. Use "
                "another checkpoint, or mend the embeddings."
            )
        return scores if self.row is None else scores[:, self.row]

    def search(self, queries: Tensor) -> TopK:
        """The k best candidates of B users by queries (B, D), best first; ties by ascending id. Raises as `scores`."""
        if not len(queries):
            return empty_topk(0, self.k, self.items.device)
        parts = [best_scored(self.scores(part), self.items, self.k) for part in queries.split(SCAN_USERS)]
        return TopK(*map(torch.cat, zip(*parts, strict=True)))

    def find(self, queries: Tensor, targets: Tensor, left_out: Sequences | None = None) -> tuple[TopK, Ranks]:
        """Lists and ranks of B users, on the device of the vectors.

        Args:
            queries: (B, D) float32.
            targets: (B,) int64 ids; one that is no candidate is not recommended.
            left_out: the candidates that are none for a user, once each; None leaves out nothing.

        Raises what `scores` raises.
        """
        lists, ranks = [], []
        for start in range(0, len(queries), SCAN_USERS):  # which bounds memory
            users = np.arange(start, min(start + SCAN_USERS, len(queries)))
            scores = self.scores(queries[start : start + SCAN_USERS])
            if left_out is not None:
                self.leave_out(scores, left_out.select(users))
            lists.append(best_scored(scores, self.items, self.k))
            ranks.append(score_ranks(scores, places_of(targets[start : start + SCAN_USERS], self.items)))
        return TopK(*map(torch.cat, zip(*lists, strict=True))), Ranks(*map(torch.cat, zip(*ranks, strict=True)))

    def leave_out(self, scores: Tensor, left_out: Sequences) -> None:
        """Set the scores (B, M) of what is left out for B users to -inf; candidates only."""
        user = torch.from_numpy(np.repeat(np.arange(len(left_out)), left_out.lengths)).to(scores.device)
        ids = torch.from_numpy(left_out.items.astype(np.int64)).to(scores.device)
        scores[user, places_of(ids, self.items)] = -torch.inf


def places_of(ids: Tensor, items: Tensor) -> Tensor:
    """Where ids (n,) int64 stand among the candidates `items` (M,), ascending; -1 for one that is none."""
    place = torch.searchsorted(items, ids).clamp(max=len(items) - 1)
    return place.where(items[place] == ids, -1)


def search_and_rank(
    logits: Tensor,
    trie: Trie,
    k: int,
    targets: Tensor,
    codes: np.ndarray,
    left_out: Sequences | None = None,
    search: Callable[[Tensor, Trie, int], TopK] = exact_search,
    rank: Callable[[Tensor, Trie, TopK, Tensor], Ranks] = rank_targets,
) -> tuple[TopK, Ranks]:
    """Lists of k items, and the ranks of the targets, of B users.

    Args:
        logits: (B, K, V) float32.
        trie: the candidates.
        k: length of the lists.
        targets: (B, K) int64 codes.
        codes: (N, K) of the items that `left_out` names.
        left_out: the candidates that are none for a user, once each; None leaves out nothing.
        search: finds the lists.
        rank: ranks the targets in them.
    """
    top = search(logits, trie, k if left_out is None else k + int(left_out.lengths.max()))
    ranks = rank(logits, trie, top, targets)
    if left_out is None:
        return top, ranks
    columns = (np.repeat(np.arange(len(left_out)), left_out.lengths), left_out.items, codes[left_out.items])
    pairs = tuple(torch.from_numpy(column.astype(np.int64)).to(logits.device) for column in columns)
    return leave_out(logits, top, ranks, targets, pairs, k)


def _best_first_into(best: TopK, log_probs: Tensor, trie: Trie, users: Tensor, setup: float) -> Tensor:
    """Write the lists of users (n,) int64 into `best`; returns those users for whom a scan is cheaper."""
    found, unproven = best_first(log_probs[users], trie, best.items.shape[1], setup)
    best.items[users], best.scores[users] = found
    return users[unproven]


def block_bounds(items: int, first: int = SCAN_ITEMS) -> Iterator[tuple[int, int]]:
    """Where the blocks of a scan begin and end: first `first` items, then SCAN_ITEMS at a time."""
    start, size = 0, first
    while start < items:
        yield start, min(start + size, items)
        start, size = start + size, SCAN_ITEMS


def scan_scores(table: Tensor, trie: Trie, first: int = SCAN_ITEMS) -> Iterator[Tensor]:
    """Scores of all items from log-probabilities (K * V, B): first those of `first` items, (first, B), then of more."""
    first_row = slot_rows(table, trie.codes.shape[1])
    for start, end in block_bounds(len(trie), first):
        yield F.embedding_bag(trie.codes[start:end] + first_row, table, mode="sum")


def slot_rows(table: Tensor, per_item: int) -> Tensor:
    """Where each slot's codes begin in a table (K * V, B) of `per_item` slots: (K,) int32."""
    return torch.arange(per_item, device=table.device, dtype=torch.int32) * (len(table) // per_item)


def code_table(log_probs: Tensor) -> Tensor:
    """Log-probabilities (B, K, V) as a table with a row for each code, (K * V, B padded to a multiple of eight)."""
    return F.pad(log_probs.permute(1, 2, 0).flatten(0, 1), (0, -len(log_probs) % 8)).contiguous()


def scan(log_probs: Tensor, trie: Trie, k: int) -> TopK:
    """Exact search by scoring every item, from log-probabilities (B, K, V)."""
    blocks = scan_scores(code_table(log_probs), trie, max(FIRST_ITEMS, k))
    return best_of_blocks(blocks, trie.items, len(log_probs), k)


def best_of_blocks(blocks: Iterator[Tensor], items: Tensor, users: int, k: int) -> TopK:
    """The k best of all items, whose scores come in blocks: (n, B padded to a multiple of eight), at first k or more.

    `items` (N,) are their ids in the order of the blocks. Ties by ascending id.
    """
    best, start = empty_topk(users, k, items.device), 0
    found, waiting = [], 0
    for scores in blocks:
        if not start:  # scores to reach; the columns of the padding never do
            bar = torch.full((scores.shape[1],), torch.inf, device=items.device)
            bar[:users] = scores[:, :users].T.topk(min(k, len(scores))).values[:, -1]
        # Eight bool are read as one int64, because nearly all are zero: `nonzero` then has an eighth of the work.
        above = (scores >= bar).view(torch.int64)  # (items, B / 8)
        item, column = above.nonzero(as_tuple=True)
        hit, user = (scores.unflatten(1, (-1, 8))[item, column] >= bar.view(-1, 8)[column]).nonzero(as_tuple=True)
        item, user = item[hit], column[hit] * 8 + user
        found.append((user, items[start + item], scores[item, user]))
        waiting, start = waiting + len(user), start + len(scores)
        if waiting >= users * k or start == len(items):
            best = _merge(best, *(torch.cat(column) for column in zip(*found, strict=True)))
            bar[:users], found, waiting = best.scores[:, -1], [], 0
    return best


def best_first(log_probs: Tensor, trie: Trie, k: int, setup: float = SCAN_SETUP) -> tuple[TopK, Tensor]:
    """Exact search that scores only items with at least one likely code, and proves that no other can win.

    The gap of a code is how far its log-probability lies below the best one in its slot. Codes are taken by ascending
    gap, and all items that have one of them are scored. An item not scored yet has K codes of larger gaps, so that its
    score is below `sum of the best - K * next gap`: once that is below the k-th score found, the list is exact. So a
    code need not be taken if its gap is more than a K-th part of the k-th item's, however flat the distributions.

    Args:
        log_probs: (B, K, V) float32.
        trie: the candidates.
        k: length of the lists.
        setup: as SCAN_SETUP, for these users together.

    Returns:
        The lists, and the users (int64) whose lists are not proven, because a scan is cheaper for them.
    """
    users, device, per_item, size = len(log_probs), log_probs.device, trie.codebook.per_item, trie.codebook.size
    highest = log_probs[..., :size].amax(-1, keepdim=True)  # (B, K, 1)
    gaps = (highest - log_probs[..., :size]).flatten(1)  # (B, K * size)
    gap, code = gaps.topk(MOST_CODES, largest=False)  # (B, M = MOST_CODES) ascending
    ceiling = highest.sum((1, 2))  # (B,)
    sizes = trie.code_starts.diff(dim=1).flatten()  # (K * size,) items that have each code
    postings = sizes[code].cumsum(1)  # (B, M) items scored up to and with each code
    best = empty_topk(users, k, device)
    active, scored = torch.arange(users, device=device), torch.zeros(users, dtype=torch.int64, device=device)
    needed, budget, unproven = torch.full((users,), MOST_CODES, device=device), FIRST_POSTINGS, active[:0]
    while len(active):
        affordable = torch.searchsorted(postings[active], torch.full((len(active), 1), budget, device=device))[:, 0]
        score_until = torch.minimum(torch.maximum(affordable, scored + 1), needed)  # codes, at least one more
        owner, rank = _ranges(scored, score_until - scored)
        best = score_postings(best, log_probs, trie, active[owner], code[active[owner], rank])

        missing = (ceiling[active] + MARGIN - best.scores[active, -1]) / per_item
        needed = torch.searchsorted(gap[active], missing[:, None], right=True)[:, 0]  # codes whose gap is not larger
        unfinished = (needed > score_until) | (needed == MOST_CODES)
        active, scored, needed, budget = active[unfinished], score_until[unfinished], needed[unfinished], budget * 8
        # Cost of finishing each user's proof; above that of any scan where even MOST_CODES codes cannot prove it.
        costs = POSTING_COST * postings[active, needed - 1].double()
        costs = costs.where(needed < MOST_CODES, len(trie) * (setup + 1) + 1)
        too_costly = costs > len(trie)
        # Not after the first round, whose k-th score means little.
        may_give_up = budget > 8 * FIRST_POSTINGS or (scored == MOST_CODES).any()
        if may_give_up and costs[too_costly].sum() > len(trie) * (setup + int(too_costly.sum())):
            unproven = torch.cat([unproven, active[too_costly]])
            active, scored, needed = active[~too_costly], scored[~too_costly], needed[~too_costly]
    return best, unproven


def score_postings(best: TopK, log_probs: Tensor, trie: Trie, user: Tensor, codes: Tensor) -> TopK:
    """Score all items that have some codes, each code for one user, and merge them into the lists.

    Args:
        best: the lists so far; unchanged, the new ones are returned.
        log_probs: (B, K, V) float32.
        trie: the candidates.
        user: (n,) int64 rows of `best`.
        codes: (n,) int64, numbered over all slots: slot * codes of the codebook + code.
    """
    slot, code = codes // trie.codebook.size, codes % trie.codebook.size
    per_item, vocabulary = log_probs.shape[1:]
    begin, end = trie.code_starts[slot, code], trie.code_starts[slot, code + 1]
    ends = (end - begin).cumsum(0)
    chunk = ends // POSTINGS_AT_ONCE
    flat, postings = log_probs.flatten(), trie.postings.flatten()
    for number in chunk.unique():
        part = chunk == number
        owner, rank = _ranges((slot * len(trie) + begin)[part], (end - begin)[part])
        position = postings.index_select(0, rank)  # (items,)
        item_codes = trie.codes.index_select(0, position)  # (items, K)
        row = (user[part] * (per_item * vocabulary))[owner]
        scores = flat[row + item_codes[:, 0]]
        for depth in range(1, per_item):
            scores += flat[row + (depth * vocabulary) + item_codes[:, depth]]
        better = (scores >= best.scores[user[part], -1][owner]).nonzero()[:, 0]
        best = _merge(best, user[part][owner[better]], trie.items[position[better]], scores[better])
    return best


def _merge(best: TopK, user: Tensor, items: Tensor, scores: Tensor) -> TopK:
    """The k best of the lists and of further candidates (n,), which may be listed already; ties by ascending id."""
    users, k = best.items.shape
    user = torch.cat([torch.arange(users, device=user.device).repeat_interleave(k), user])
    items, scores = torch.cat([best.items.flatten(), items.long()]), torch.cat([best.scores.flatten(), scores])
    order = items.where(items >= 0, LAST).argsort(stable=True)  # among equal scores empty entries (-1) come last
    order = order[scores[order].argsort(descending=True, stable=True)]
    order = order[user[order].argsort(stable=True)]
    user, items, scores = user[order], items[order], scores[order]
    first = torch.ones_like(user, dtype=torch.bool)
    first[1:] = (user[1:] != user[:-1]) | (items[1:] != items[:-1])
    user, items, scores = user[first], items[first], scores[first]
    rank = torch.arange(len(user), device=user.device) - torch.searchsorted(user, user)
    kept, merged = rank < k, empty_topk(users, k, user.device)
    merged.items[user[kept], rank[kept]] = items[kept]
    merged.scores[user[kept], rank[kept]] = scores[kept]
    return merged


def empty_topk(users: int, k: int, device: torch.device) -> TopK:
    """Lists in which nothing has been found yet."""
    return TopK(torch.full((users, k), -1, device=device), torch.full((users, k), -torch.inf, device=device))


def _ranges(begin: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """All numbers of the ranges [begin, begin + count), one range after another: the range of each, and the number."""
    owner = torch.repeat_interleave(counts)
    return owner, torch.arange(len(owner), device=begin.device) + (begin - counts.cumsum(0) + counts)[owner]


def beam_search(
    logits: Tensor, trie: Trie, k: int, temperature: float = 0.1, first: int = 10, per_beam: int = 5, beams: int = 20
) -> TopK:
    """The published search: the most likely prefixes, extended code by code within the catalog. It is approximate.

    The first step keeps `first` codes; every later one extends each beam by its `per_beam` best next codes and keeps
    the `beams` best of all. Scores are log-softmax of logits / temperature. All items of a leaf are returned.

    Args:
        logits: (B, K, V) float32.
        trie: the candidates; on the device of the logits.
        k: length of the lists.
        temperature: divides the logits.
        first: codes kept by the first step.
        per_beam: extensions of a beam in a later step.
        beams: beams kept by a later step.

    Raises:
        ValueError: as `exact_search`; a width below 1, a temperature of 0 or below, or logits too large for it.
    """
    check_arguments(logits, trie, k)
    for name, width in (("first", first), ("per_beam", per_beam), ("beams", beams)):
        check_count(width, name)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, found {temperature}")
    log_probs = (logits / temperature).log_softmax(-1)  # (B, K, V)
    if log_probs.isnan().any():
        raise ValueError(f"logits up to {logits.abs().max():.3g} are too large to be divided by {temperature}")
    users = len(logits)
    nodes = torch.zeros(users, min(1, len(trie)), dtype=torch.int64, device=logits.device)  # the root
    scores = torch.zeros(nodes.shape, device=logits.device)
    for depth in range(trie.codebook.per_item):
        per_parent, keep = (first, first) if depth == 0 else (per_beam, beams)
        nodes, scores = _extend(log_probs[:, depth], trie, depth, nodes, scores, per_parent, keep)
    return _leaf_items(trie, nodes, scores, k)


def free_search(logits: Tensor, trie: Trie, k: int) -> TopK:
    """The k most likely rows of codes, whether or not an item has them: an ablation of the search within the catalog.

    The first row has the most likely code of each position. Items that share a row of codes all follow one another; a
    row that is no item's takes a place, too, with -1 as its item.

    Args:
        logits: (B, K, V) float32.
        trie: the candidates; on the device of the logits.
        k: length of the lists.

    Raises:
        ValueError: as `exact_search`.
    """
    check_arguments(logits, trie, k)
    found = empty_topk(len(logits), k, logits.device)
    for start in range(0, len(logits), SCAN_USERS):  # which bounds memory
        users = slice(start, start + SCAN_USERS)
        codes, scores = likeliest_codes(logits[users].log_softmax(-1), k)
        found.items[users], found.scores[users] = _leaf_items(trie, trie.find(codes), scores, k)
    return found


def likeliest_codes(log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most likely rows of codes by log-probabilities (B, K, V), best first: (B, W, K) int64, and scores (B, W).

    W is k, or less where there are fewer rows.
    """
    best, codes = log_probs.topk(min(k, log_probs.shape[2]))  # (B, K, V'), of which no better row has others
    scores, rows = best[:, 0], codes[:, 0, :, None]  # (B, W) and (B, W, 1), of rows with one code so far
    for slot in range(1, log_probs.shape[1]):
        sums = (scores[..., None] + best[:, slot, None]).flatten(1)  # (B, W * V')
        scores, chosen = sums.topk(min(k, sums.shape[1]))
        earlier = rows.gather(1, (chosen // best.shape[2])[..., None].expand(-1, -1, slot))
        rows = torch.cat([earlier, codes[:, slot].gather(1, chosen % best.shape[2])[..., None]], -1)
    return rows, scores


def _extend(
    log_probs: Tensor, trie: Trie, depth: int, nodes: Tensor, scores: Tensor, per_parent: int, keep: int
) -> tuple[Tensor, Tensor]:
    """One step of beam search: nodes and scores of (B, W) beams -> of (B, at most keep) longer beams, best first."""
    begin, end = trie.children(nodes, depth)  # (B, W)
    most = int((end - begin).max()) if nodes.numel() else 0
    children = begin[..., None] + torch.arange(most, device=nodes.device)  # (B, W, most)
    real = (children < end[..., None]) & (scores > -torch.inf)[..., None]
    children = children.clamp(max=len(trie.starts[depth + 1]) - 2)
    codes = trie.node_codes(children, depth + 1)
    grown = scores[..., None] + log_probs[:, None].expand(-1, nodes.shape[1], -1).gather(2, codes)
    best, rank = grown.masked_fill(~real, -torch.inf).topk(min(per_parent, most), dim=2)  # (B, W, per_parent)
    best, where = best.flatten(1).topk(min(keep, best[0].numel() if len(best) else 0), dim=1)
    return children.gather(2, rank).flatten(1).gather(1, where), best


def _leaf_items(trie: Trie, leaves: Tensor, scores: Tensor, k: int) -> TopK:
    """The first k items of each user's (B, W) leaves: in the order of the leaves, within one by ascending id.

    A leaf of -1, which no item has, takes a place, too, with -1 as its item.
    """
    bounds, real = trie.starts[-1], leaves >= 0
    leaves = leaves.clamp(min=0)
    begin, end = bounds[leaves], bounds[(leaves + 1).clamp(max=len(bounds) - 1)]  # (B, W)
    counts = torch.where(real, (end - begin).clamp(max=k), 1)
    counts = torch.where(scores > -torch.inf, counts, 0)
    before = counts.cumsum(1) - counts  # (B, W) position of a leaf's first item in the user's list
    leaf, rank = _ranges(begin.flatten().long(), counts.flatten().long())  # (all items,)
    position = before.flatten()[leaf] + rank - begin.flatten()[leaf]
    leaf, rank, position = (column[position < k] for column in (leaf, rank, position))
    user = leaf // max(1, leaves.shape[1])
    found = empty_topk(len(leaves), k, leaves.device)
    is_item = real.flatten()[leaf]
    found.items[user[is_item], position[is_item]] = trie.items[rank[is_item]].long()
    found.scores[user, position] = scores.flatten()[leaf]
    return found
