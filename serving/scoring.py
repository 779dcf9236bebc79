"""What a model says of every item, and the model that a blend is fitted with: for predict.py and for serving."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ae_trainer import AutoEncoder, load_tokenizer
from model import Items, RecGPT, load_model
from utils.checkpoint import ITEMS
from utils.data import Catalog, Sequences, cumulate, make_batch
from utils.datasets import Origin, check_fit, noted_encoder, noted_whole_lists
from utils.errors import InputError
from utils.files import content
from utils.search import code_table, slot_rows

ITEMS_AT_ONCE = 1 << 18  # that are scored by codes at once


class Parts(NamedTuple):
    """A model, what it reads a catalog with, and the catalog as it reads it."""

    model: RecGPT
    metadata: dict[str, Any]  # beside its checkpoint
    tokenizer: AutoEncoder
    catalog: Catalog


def load_parts(
    ckpt_path: str, vae_ckpt: str, source: Path, embeddings: np.ndarray, device: torch.device, layers: int | None = None
) -> Parts:
    """Load checkpoint and tokenizer, and tokenize a data set's embeddings (N, E), which are in the file `source`.

    InputError for a damaged file, or parts that do not fit each other; `layers` is --tf_layer.
    """
    tokenizer = load_tokenizer(vae_ckpt, device)
    model, metadata = load_model(ckpt_path, device, layers)
    encoder = tokenizer.prepared_encoder(noted_encoder(source))
    at_hand = Origin(source, embeddings.shape[1], encoder, tokenizer.fingerprint(), tokenizer.codebook)
    known = (metadata.get("encoder"), metadata.get("tokenizer"), model.config.codebook)
    check_fit(Origin(ckpt_path, model.config.embedding_width, *known), at_hand)
    prepared = tokenizer.prepare(embeddings, str(source))
    codes = tokenizer.tokenize(prepared, str(source))
    catalog = Catalog(codes, prepared, source=str(source), codebook=tokenizer.codebook)
    return Parts(model, metadata, tokenizer, catalog)


def blend_origin(model: RecGPT, fitted_with: RecGPT, tokenizer: AutoEncoder) -> dict[str, str]:
    """Hashes of weights and tokenizer, which a blend with RecGPT notes."""
    hashes = {"checkpoint": model.fingerprint(), "fitted with": fitted_with.fingerprint()}
    return {**hashes, "tokenizer": tokenizer.fingerprint()}


def batches_of_equal_work(lengths: np.ndarray, users: int) -> Iterator[np.ndarray]:
    """Rows of each batch, by length (U,) of the histories, longest first: memory runs out at once or never.

    A batch has as many items as `users` histories of mean length: at least one history, at most `8 * users`.
    """
    order = np.argsort(-lengths, kind="stable")
    items = cumulate(lengths[order])  # before each history
    start = 0
    while start < len(order):
        end = int(np.searchsorted(items, items[start] + users * lengths.mean(), side="right")) - 1
        end = min(max(end, start + 1), start + 8 * users)
        yield order[start:end]
        start = end


@torch.inference_mode()
def scores_of_all(model: RecGPT, catalog: Catalog, users: int, histories: Sequences) -> Tensor:
    """Scores of every item after B histories, (B, N) float32 on the CPU; log-probabilities where codes are predicted.

    `users` are those of mean length in a batch, as for `batches_of_equal_work`.
    """
    device, read = next(model.parameters()).device, histories.last(model.config.window - 1)
    if model.config.predicts == ITEMS:
        score = model.item_search(Items(catalog).to(device), 1).scores
    else:
        codes = torch.from_numpy(catalog.codes).to(device)

        def score(logits: Tensor) -> Tensor:
            return code_scores(codes, logits.log_softmax(-1))

    scores = torch.empty(len(read), len(catalog))
    for rows in batches_of_equal_work(read.lengths, users):
        scores[rows] = score(model.next_item(make_batch(read.select(rows), catalog).to(device))).cpu()
    return scores


def code_scores(codes: Tensor, log_probs: Tensor) -> Tensor:
    """The scores (B, N) of items with codes (N, K) int16, from log-probabilities (B, K, V), some items at a time."""
    table = code_table(log_probs)
    slots = slot_rows(table, codes.shape[1])
    scores = torch.empty(len(log_probs), len(codes), device=codes.device)
    for start in range(0, len(codes), ITEMS_AT_ONCE):
        rows = codes[start : start + ITEMS_AT_ONCE].int() + slots
        scores[:, start : start + len(rows)] = F.embedding_bag(rows, table, mode="sum")[:, : len(log_probs)].T
    return scores


def load_fitted_with(
    metadata: dict[str, Any], path: str, predicts: str, device: torch.device, log: Path
) -> RecGPT | None:
    """Load the model that a blend must be fitted with, where it is another than the checkpoint's; None where not.

    A checkpoint of pre_train.py --refit_of has been trained on the last items of train.pkl, the targets of the fit. On
    these it is better than it will be on others, and would get too much weight. The weights that it repeats are not.

    Raises:
        InputError: those weights are not where the JSON beside the checkpoint says, or are others; or there are none
            that were trained without the last items of `log`, which is train.pkl.
    """
    noted = metadata.get("refit_of")
    if not isinstance(noted, dict):
        check_unseen(metadata, path, log)
        return None
    earlier = Path(str(noted.get("name")))
    if not earlier.is_file() or noted.get("content") != [content(earlier)]:
        raise InputError(
            f"{path} was trained on the last items of train.pkl, to which a blend is fitted. The fit needs the weights "
            f"that it repeats, {earlier}, as they were. Put them back, or leave out --blend."
        )
    fitted_with, metadata = load_model(earlier, device)
    if fitted_with.config.predicts != predicts:
        raise InputError(f"{path} predicts {predicts}, and {earlier}, which it repeats, {fitted_with.config.predicts}.")
    check_unseen(metadata, str(earlier), log)
    return fitted_with


def check_unseen(metadata: dict[str, Any], path: str, log: Path) -> None:
    """InputError if a checkpoint, by the JSON beside it, was trained on the last items of `log`."""
    seen = noted_whole_lists(metadata)
    if seen and log.is_file() and content(log) in seen:
        raise InputError(
            f"{path} was trained on the last items of {log}, to which a blend is fitted. Train on data of "
            "make_pre_train.py, and again with --refit_of (README, Your own data), or leave out --blend."
        )
