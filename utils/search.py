"""From the four next-item distributions to items of the catalog: exact search and the published beam search.

Both work on all users of a batch at once. An item's score is the sum of its four log-probabilities.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from utils.fsq import CODES_PER_ITEM
from utils.Trie import Trie

CHUNK = 1 << 18  # items scored at once: bounds memory at users x CHUNK scores


class TopK(NamedTuple):
    """Ranked items of each user; -1 and -inf where the search found fewer than k."""

    items: Tensor  # (B, k) int64 item ids
    scores: Tensor  # (B, k) float32, sums of log-probabilities in nats


def exact_search(logits: Tensor, codes: Tensor, items: Tensor, k: int) -> TopK:
    """The true k best items of the catalog, ties in ascending id order.

    Args:
        logits: (B, K, V) float32.
        codes: (N, K) int64, the codes of the candidates.
        items: (N,) int64, their ids in ascending order.
        k: length of the lists.
    """
    log_probs = logits.log_softmax(-1)  # (B, K, V)
    best = torch.empty(len(logits), 0, device=logits.device)
    where = torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)
    for start in range(0, len(codes), CHUNK):
        chunk = codes[start : start + CHUNK]
        scores = log_probs[:, 0].index_select(1, chunk[:, 0])  # (B, chunk)
        for position in range(1, CODES_PER_ITEM):
            scores += log_probs[:, position].index_select(1, chunk[:, position])
        rank = _top(scores, min(k, len(chunk)))
        # Candidates of earlier chunks come first, so that the stable sort keeps the smaller id of a tie.
        best = torch.cat([best, scores.gather(1, rank)], dim=1)
        where = torch.cat([where, rank + start], dim=1)
        best, order = torch.sort(best, dim=1, descending=True, stable=True)
        best, where = best[:, :k], where.gather(1, order[:, :k])
    return TopK(_fill(items[where], k, -1), _fill(best, k, -torch.inf))


def _top(scores: Tensor, k: int) -> Tensor:
    """Columns of the k largest of (B, N) scores, in ascending order; of equal ones the first. (B, k) int64.

    `torch.topk` alone picks any of the columns that tie for the last place.
    """
    kth = scores.topk(k).values[:, -1:]  # (B, 1)
    above, tied = scores > kth, scores == kth
    free = k - above.sum(1, keepdim=True)
    kept = above | (tied & (tied.cumsum(1, dtype=torch.int32) <= free))
    return kept.nonzero()[:, 1].view(len(scores), k)


def beam_search(
    logits: Tensor,
    trie: Trie,
    k: int,
    temperature: float = 0.1,
    first: int = 10,
    per_beam: int = 5,
    beams: int = 20,
) -> TopK:
    """The published approximate search: the most likely prefixes, extended code by code within the catalog.

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
    """
    log_probs = (logits / temperature).log_softmax(-1)  # (B, K, V)
    users = len(logits)
    nodes = torch.zeros(users, min(1, len(trie)), dtype=torch.int64, device=logits.device)  # the root
    scores = torch.zeros(nodes.shape, device=logits.device)
    for depth in range(CODES_PER_ITEM):
        per_parent, keep = (first, first) if depth == 0 else (per_beam, beams)
        nodes, scores = _extend(log_probs[:, depth], trie, depth, nodes, scores, per_parent, keep)
    return _leaf_items(trie, nodes, scores, k)


def _extend(
    log_probs: Tensor, trie: Trie, depth: int, nodes: Tensor, scores: Tensor, per_parent: int, keep: int
) -> tuple[Tensor, Tensor]:
    """One step of beam search: (B, W) beams of a depth -> (B, at most keep) beams of the next, best first.

    Children are ragged, so they are laid end to end; `parent` tells the beam that each belongs to.
    """
    begin, end = (side.flatten() for side in trie.children(nodes, depth))  # (B * W,)
    alive = scores.flatten() > -torch.inf
    counts = torch.where(alive, end - begin, 0)
    parent = torch.repeat_interleave(counts)  # (all children,)
    first_child = counts.cumsum(0) - counts
    children = begin[parent] + torch.arange(len(parent), device=nodes.device) - first_child[parent]
    child_scores = (
        scores.flatten()[parent] + log_probs[parent // max(1, nodes.shape[1]), trie.node_codes(children, depth + 1)]
    )

    # Best first within each parent: sort by score, then stably by parent.
    order = child_scores.argsort(descending=True, stable=True)
    order = order[parent[order].argsort(stable=True)]
    rank = torch.arange(len(order), device=nodes.device) - first_child[parent[order]]
    order, rank = order[rank < per_parent], rank[rank < per_parent]

    candidates = scores.new_full((nodes.numel(), per_parent), -torch.inf)  # (B * W, per_parent)
    candidate_nodes = nodes.new_zeros(candidates.shape)
    candidates[parent[order], rank] = child_scores[order]
    candidate_nodes[parent[order], rank] = children[order]
    candidates, candidate_nodes = candidates.view(len(nodes), -1), candidate_nodes.view(len(nodes), -1)
    best, where = candidates.topk(min(keep, candidates.shape[1]), dim=1)
    return candidate_nodes.gather(1, where), best


def _leaf_items(trie: Trie, leaves: Tensor, scores: Tensor, k: int) -> TopK:
    """Items of (B, W) leaves in the order of the leaves, ascending ids within one, at most k per user."""
    bounds = trie.starts[CODES_PER_ITEM]
    begin, end = bounds[leaves], bounds[leaves + 1]  # (B, W)
    counts = torch.where(scores > -torch.inf, (end - begin).clamp(max=k), 0)
    before = counts.cumsum(1) - counts  # (B, W) place of a leaf's first item in the user's list
    leaf = torch.repeat_interleave(counts.flatten())  # (all items,)
    within = torch.arange(len(leaf), device=leaves.device) - (counts.flatten().cumsum(0) - counts.flatten())[leaf]
    place = before.flatten()[leaf] + within
    leaf, within, place = (column[place < k] for column in (leaf, within, place))
    user = leaf // max(1, leaves.shape[1])
    found = TopK(leaves.new_full((len(leaves), k), -1), scores.new_full((len(leaves), k), -torch.inf))
    found.items[user, place] = trie.items[begin.flatten()[leaf] + within]
    found.scores[user, place] = scores.flatten()[leaf]
    return found


def _fill(values: Tensor, k: int, value: float) -> Tensor:
    """(B, at most k) -> (B, k), the missing columns filled."""
    missing = values.new_full((len(values), k - values.shape[1]), value)
    return torch.cat([values, missing], dim=1)
