"""The tokenizer's decoder: a small transformer that rebuilds an item embedding from its four quantized slices."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import InputError
from utils.fsq import PUBLISHED, Codebook

DROPOUT = 0.2
INITIAL_STD = 0.02  # of linear and embedding weights
DECODER_HEADS = 8  # attention heads over one slice


class Attention(nn.Module):
    """Multi-head self-attention. `linear_layers`, the release's name, are those of queries, keys and values."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.output_linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, width) -> (N, K, width)."""
        query, key, value = (
            linear(x).unflatten(-1, (DECODER_HEADS, -1)).transpose(1, 2)  # (N, heads, K, width / heads)
            for linear in self.linear_layers
        )
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=DROPOUT if self.training else 0.0)
        return self.output_linear(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with GELU and dropout between them."""

    def __init__(self, width: int):
        super().__init__()
        self.w_1 = nn.Linear(width, 4 * width)
        self.w_2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, width) -> (N, K, width)."""
        return self.w_2(self.dropout(F.gelu(self.w_1(x))))


class Residual(nn.Module):
    """Pre-norm residual connection around a sublayer. It holds the norm, which the release names so."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, sublayer: nn.Module) -> Tensor:
        """x + dropout(sublayer(norm(x))), shape kept."""
        return x + self.dropout(sublayer(self.norm(x)))


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with a pre-norm residual connection; dropout on the output."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = Attention(width)
        self.feed_forward = FeedForward(width)
        self.input_sublayer = Residual(width)
        self.output_sublayer = Residual(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, width) -> (N, K, width)."""
        x = self.input_sublayer(x, self.attention)
        x = self.output_sublayer(x, self.feed_forward)
        return self.dropout(x)


class Decoder(nn.Module):
    """Rebuilds item embeddings (N, E) from quantized slices (N, K, E/K), at the last of the K positions.

    Starts as published: weights of linear layers and positions from N(0, 0.02), biases 0, norms 1 and 0.
    """

    def __init__(self, embedding_width: int, per_item: int):
        super().__init__()
        width = embedding_width // per_item
        self.position_emb = nn.Embedding(per_item, width)
        self.dropout = nn.Dropout(0.1)
        self.transformer_layers = nn.ModuleList(TransformerLayer(width) for _ in range(2))
        self.linear_layer = nn.Sequential(
            nn.Linear(width, embedding_width), nn.ReLU(), nn.Linear(embedding_width, embedding_width)
        )
        self.apply(_init_weights)

    def forward(self, quantized: Tensor) -> Tensor:
        """(N, K, E/K) float -> (N, E) float."""
        x = self.dropout(quantized + self.position_emb(torch.arange(quantized.shape[1], device=quantized.device)))
        for layer in self.transformer_layers:
            x = layer(x)
        return self.linear_layer(x[:, -1])


def _init_weights(module: nn.Module) -> None:
    """Draw the initial weights of one layer as published; norms start as torch's do."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def check_width(width: int, source: str | Path, codebook: Codebook = PUBLISHED) -> None:
    """InputError unless an embedding width divides into a slice for each code of an item, of eight heads each."""
    parts = codebook.per_item * DECODER_HEADS
    if not width or width % parts:
        raise InputError(
            f"{source}: embeddings are {width} wide, expected a multiple of {parts} ({codebook.per_item} slices, "
            f"{DECODER_HEADS} heads). Choose a sentence encoder of such a width, or other --codes."
        )
