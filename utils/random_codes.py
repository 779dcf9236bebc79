"""Codes drawn at random in place of a tokenizer's: what the codes' meaning is worth (an ablation of the paper).

Every text has codes of its own, which depend on its embedding and a seed alone, so that equal texts have equal codes in
all data sets, and like texts have codes that have nothing in common. Embeddings are read in float16, so that a matrix
that is kept in half precision gives the codes of the one that it was made from.
"""

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from utils.data import check_finite
from utils.errors import InputError
from utils.fsq import PUBLISHED, Codebook

FORM = re.compile(r"random:([0-9]{1,10})")


@dataclass(frozen=True)
class RandomCodes:
    """What data scripts and predict.py use like a tokenizer (ae_trainer.AutoEncoder)."""

    seed: int
    codebook: Codebook = PUBLISHED
    whitens = False

    @classmethod
    def named(cls, name: str) -> "RandomCodes | None":
        """The one that --vae_ckpt names as random:SEED; None for the name of a file."""
        found = FORM.fullmatch(name)
        return cls(int(found[1])) if found else None

    def prepare(self, embeddings: np.ndarray, source: str = "the embeddings") -> np.ndarray:
        """The embeddings (N, E) of one data set as they are."""
        return embeddings

    def prepared_encoder(self, encoder: str | None) -> str | None:
        """Name of the encoder of embeddings that `prepare` has prepared."""
        return encoder

    def tokenize(self, embeddings: np.ndarray, source: str = "the embeddings", batch_size: int = 8192) -> np.ndarray:
        """Draw the codes (N, K) int16 of embeddings (N, E) float; InputError for one that is not finite."""
        codes = np.empty((len(embeddings), self.codebook.per_item), dtype=np.int16)
        for start in range(0, len(embeddings), batch_size):
            batch = np.ascontiguousarray(embeddings[start : start + batch_size], dtype=np.float32)
            check_finite(batch, start, source)
            with np.errstate(over="ignore"):
                batch = batch.astype(np.float16) + np.float16(0)  # without a negative zero
            for number, row in enumerate(batch, start):
                codes[number] = self._draw(row)
        return codes

    def _draw(self, row: np.ndarray) -> np.ndarray:
        """The codes (K,) of one embedding (E,) float16."""
        drawn = hashlib.shake_128(self.seed.to_bytes(8, "little") + row.tobytes()).digest(8 * self.codebook.per_item)
        return np.frombuffer(drawn, dtype="<u8") % np.uint64(self.codebook.size)

    def fingerprint(self) -> str:
        """The name, by which a checkpoint knows its codes again."""
        return f"random:{self.seed}"

    def save_weights(self, _: object) -> None:
        """Refuse to be put into a bundle or a directory of weights."""
        raise InputError("codes drawn at random are an ablation and cannot be shared or served: use a tokenizer.")
