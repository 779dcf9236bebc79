"""The published formulation, which the benchmarks compare with: padding, eager attention, all logits, dictionaries.

It has the program's weights and results, and the costs of the published one. It is not copied from there.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from model import RecGPT
from utils.data import Catalog, Sequences
from utils.fsq import PUBLISHED
from utils.masks import item_block_mask


class PublishedModel(nn.Module):
    """RecGPT over one row per history, padded to a common length, with the logits of every token."""

    def __init__(self, model: RecGPT):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.gpt2model.config._attn_implementation = "eager"
        for block in self.model.gpt2model.h:
            block.mlp.act = ACT2FN["gelu_new"]

    def forward(self, codes: Tensor, embeddings: Tensor) -> Tensor:
        """(B, L, K) int64 and (B, L, E) float, padded behind the last item -> (B, T, V) logits."""
        inputs = self.model.fuse(codes, embeddings)  # (B, T, D)
        tokens = inputs.shape[1]
        positions = torch.arange(tokens, device=inputs.device)
        visible = item_block_mask(positions, positions, PUBLISHED.per_item)  # (T, T)
        real = (codes != PUBLISHED.padding).all(-1).repeat_interleave(PUBLISHED.per_item, 1)  # (B, T)
        mask = ~(visible & real[:, None, None, :]) * torch.finfo(torch.float32).min  # (B, 1, T, T), added to the scores
        return self.model.pred_head(self.model.gpt2model(inputs, positions[None], attention_mask=mask))


def padded_rows(sequences: Sequences, catalog: Catalog, items: int) -> tuple[Tensor, Tensor]:
    """Rows of `items` items: codes (B, items, K) int64, padded with 15360, and embeddings (B, items, E) with zero."""
    codes = np.full((len(sequences), items, PUBLISHED.per_item), PUBLISHED.padding, dtype=np.int64)
    embeddings = np.zeros((len(sequences), items, catalog.embeddings.shape[1]), dtype=np.float32)
    for row in range(len(sequences)):
        history = sequences.items[sequences.offsets[row] : sequences.offsets[row + 1]]
        codes[row, : len(history)] = catalog.codes[history]
        embeddings[row, : len(history)] = catalog.embed(history)
    return torch.from_numpy(codes), torch.from_numpy(embeddings)


def published_loss(model: PublishedModel, codes: Tensor, embeddings: Tensor) -> tuple[Tensor, int]:
    """Summed cross-entropy of token t + 4 at every token t, and the number of real targets."""
    logits = model(codes, embeddings)[:, : -PUBLISHED.per_item]
    targets = codes.flatten(1)[:, PUBLISHED.per_item :]
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PUBLISHED.padding, reduction="sum")
    return total, int((targets != PUBLISHED.padding).sum())


def dictionary_trie(codes: np.ndarray) -> dict:
    """(N, K) codes -> nested dictionaries, code by code; a leaf holds the item with the highest id."""
    root: dict = {}
    for item, (first, second, third, fourth) in enumerate(codes.tolist()):
        root.setdefault(first, {}).setdefault(second, {}).setdefault(third, {})[fourth] = item
    return root


def walk_trie(
    logits: Tensor, trie: dict, k: int, first: int = 10, per_beam: int = 5, beams: int = 20
) -> list[list[int]]:
    """The published beam search of (B, K, V) logits, one user and one beam at a time: lists of at most k items."""
    lists = []
    for user_logits in logits:
        log_probs = (user_logits / 0.1).log_softmax(-1)  # (K, V)
        alive = [(0.0, trie)]
        for depth in range(PUBLISHED.per_item):
            grown = []
            for score, node in alive:
                children = list(node)
                found = log_probs[depth][torch.tensor(children)]
                best = found.topk(min(per_beam if depth else first, len(children)))
                for value, child in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    grown.append((score + value, node[children[child]]))
            alive = sorted(grown, key=lambda beam: -beam[0])[: beams if depth else first]
        lists.append([item for _, item in alive[:k]])
    return lists
