"""The tokenizer's encoder: it has no parameters, an embedding is cut into consecutive slices."""

from torch import Tensor, nn

from utils.fsq import CODES_PER_ITEM


class Encoder(nn.Module):
    """Cut item embeddings into K sub-vectors, one per code (design of the published tokenizer)."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, E) float -> (N, K, E/K) float, consecutive slices; E must be a multiple of K."""
        return embeddings.unflatten(-1, (CODES_PER_ITEM, -1))
