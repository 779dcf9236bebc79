"""The catalog of a data set directory as a tokenizer reads it."""

from pathlib import Path

import numpy as np
import torch

from ae_trainer import AutoEncoder, load_tokenizer
from utils.data import Catalog
from utils.datasets import MAKE_TEST, check_encoded
from utils.errors import InputError
from utils.files import load_matrix


def load_catalog(folder: Path, vae_ckpt: str, device: torch.device) -> tuple[Catalog, AutoEncoder]:
    """Load and tokenize the items of a data set directory; InputError for damaged files, or parts that do not fit."""
    path = folder / "item_text_embeddings.npy"
    check_encoded(path)
    embeddings = load_matrix(path, MAKE_TEST)
    tokenizer = load_tokenizer(vae_ckpt, device)
    prepared = tokenizer.prepare(embeddings, str(path))
    codes = tokenizer.tokenize(prepared, str(path))
    return Catalog(codes, prepared, source=str(path), codebook=tokenizer.codebook), tokenizer


def items_with_text(catalog: Catalog) -> np.ndarray:
    """Ids (n,) int64 of the items whose embedding is not zero; says how many are left out, InputError if all are."""
    items = np.flatnonzero(catalog.embed(np.arange(len(catalog))).any(axis=1))
    if not len(items):
        raise InputError(f"{catalog.source}: no item has text (all embeddings are zero). Encode the texts again.")
    if without := len(catalog) - len(items):
        print(f"{without:,} of {len(catalog):,} items have no text (zero embedding) and are left out")
    return items
