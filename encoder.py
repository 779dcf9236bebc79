"""The tokenizer's encoder, which has no parameters: an embedding is cut into consecutive slices."""

from torch import Tensor, nn

from utils.fsq import CODES_PER_ITEM


class Encoder(nn.Module):
    """Cuts item embeddings into K slices, one per code, as the published tokenizer does."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, E) float -> (N, K, E/K) float, consecutive slices; E must be a multiple of K."""
        return embeddings.unflatten(-1, (CODES_PER_ITEM, -1))
