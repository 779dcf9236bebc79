"""The tokenizer's encoder, which has no parameters: an embedding is cut into consecutive slices."""

from torch import Tensor, nn


class Encoder(nn.Module):
    """Cuts item embeddings into K slices, one per code, as the published tokenizer does."""

    def __init__(self, per_item: int):
        super().__init__()
        self.per_item = per_item  # K

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, E) float -> (N, K, E/K) float, consecutive slices; E must be a multiple of K."""
        return embeddings.unflatten(-1, (self.per_item, -1))
