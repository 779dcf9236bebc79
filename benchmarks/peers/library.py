"""SASRec, BERT4Rec and EASE of RecTools, with its own settings but for those below; needs this folder's environment.

Changed against the library, without a change of what is computed: a batch is cut to its longest history, and logits
are made only where there is a target. As it comes, the library pads every history to the full window and makes logits
for padding, too.
"""

import ctypes
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.models import BERT4RecModel, EASEModel, SASRecModel
from rectools.models.nn.transformers.bert4rec import BERT4RecDataPreparator
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.sasrec import SASRecDataPreparator
from torch import Tensor

from benchmarks.peers.run import Lists, Peer, Recommend
from utils.data import Sequences, cumulate

REGULARIZATIONS = (20.0, 100.0, 500.0, 2000.0)  # of EASE; the library has 500
SHARED = {"session_max_len": 50, "n_blocks": 2, "n_heads": 2, "batch_size": 64, "loss": "softmax"}
TRIAL = 100  # steps of a trial, at least
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def make_peer(name: str, items: int, device: torch.device, seed: int) -> Peer:
    """A peer for a catalog of `items`."""
    keep_freed_memory()
    warnings.filterwarnings("ignore", module="pytorch_lightning|rectools|pydantic")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if name == "ease":
        return Peer("regularization", partial(ease_trials, items), partial(train_ease, items))
    kind, preparator, settings = TRANSFORMERS[name]
    settings = {**SHARED, **settings, "use_key_padding_mask": True, "data_preparator_type": preparator}
    settings |= {"lightning_module_type": TargetsOnly, "recommend_torch_device": str(device)}
    gpu = (device.index or 0) if device.type == "cuda" else None
    settings |= {"get_trainer_func": make_trainer, "get_trainer_func_kwargs": {"gpu": gpu}}
    new = partial(new_transformer, kind, settings, seed)
    return Peer("epochs", partial(transformer_trials, items, new), partial(train_transformer, items, new))


def keep_freed_memory() -> None:
    """Tell the C library to keep large blocks that are freed, for the next step.

    Otherwise each large tensor is a fresh mapping, which the kernel fills with zeros page by page at every step.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def as_dataset(sequences: Sequences, items: int, once: bool = False) -> Dataset:
    """The interactions of users 0, 1, … in RecTools' form, where ids outside and inside are the same.

    With `once` an item counts once for a user. The place in the list stands for the time.
    """
    user = np.repeat(np.arange(len(sequences)), sequences.lengths)
    place = np.arange(len(user)) - sequences.offsets[user]
    columns = {Columns.User: user, Columns.Item: sequences.items, Columns.Weight: 1.0, Columns.Datetime: place}
    table = pd.DataFrame(columns)
    if once:
        table = table.drop_duplicates([Columns.User, Columns.Item])
    return Dataset(IdMap(np.arange(len(sequences))), IdMap(np.arange(items)), Interactions(table))


def as_lists(table: pd.DataFrame, users: int) -> Lists:
    """RecTools' table of recommendations as lists of users 0, 1, …; an empty list for who is not in the table."""
    table = table.sort_values([Columns.User, Columns.Rank])
    ends = cumulate(np.bincount(table[Columns.User], minlength=users))[1:-1]
    parts = (np.split(table[column].to_numpy(), ends) for column in (Columns.Item, Columns.Score))
    return list(zip(*parts, strict=True))


def recommend(model: Any, items: int, once: bool, histories: Sequences, k: int, exclude_history: bool) -> Lists:
    """Lists of a fitted model."""
    dataset = as_dataset(histories, items, once)
    users = np.arange(len(histories))
    table = model.recommend(users, dataset, k, filter_viewed=exclude_history, on_unsupported_targets="ignore")
    return as_lists(table, len(histories))


# EASE


def train_ease(items: int, sequences: Sequences, regularization: float) -> Recommend:
    """EASE with one regularization."""
    model = EASEModel(regularization, recommend_use_gpu_ranking=False).fit(as_dataset(sequences, items, once=True))
    return partial(recommend, model, items, True)


def ease_trials(items: int, sequences: Sequences) -> Iterator[tuple[float, Recommend]]:
    """EASE with each regularization."""
    for regularization in REGULARIZATIONS:
        yield regularization, train_ease(items, sequences, regularization)


# Transformers


def trim(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut the columns on the left where all histories are padded; positions count from the right."""
    first = int((batch["x"] != 0).any(dim=0).int().argmax())
    return {name: values[:, first:] for name, values in batch.items()}


class Trimmed:
    """Batches as long as their longest history."""

    def _collate_fn_train(self, batch: list) -> dict[str, Tensor]:
        return trim(super()._collate_fn_train(batch))

    def _collate_fn_recommend(self, batch: list) -> dict[str, Tensor]:
        return trim(super()._collate_fn_recommend(batch))


class TrimmedSASRec(Trimmed, SASRecDataPreparator):
    """The batches of SASRec."""

    item_extra_tokens = np.array(SASRecDataPreparator.item_extra_tokens, dtype=object)  # pandas 3 takes no tuple


class TrimmedBERT4Rec(Trimmed, BERT4RecDataPreparator):
    """The batches of BERT4Rec."""

    item_extra_tokens = np.array(BERT4RecDataPreparator.item_extra_tokens, dtype=object)


class TargetsOnly(TransformerLightningModule):
    """Softmax over the whole catalog, only where there is a target."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy over the targets of a batch."""
        items = self.torch_model.item_model.get_all_embeddings()
        states, wanted = self.torch_model.encode_sessions(batch, items), batch["y"] > 0
        return F.cross_entropy(states[wanted] @ items.T, batch["y"][wanted])


TRANSFORMERS = {
    "sasrec": (SASRecModel, TrimmedSASRec, {"n_factors": 128, "dropout_rate": 0.2, "lr": 1e-3}),
    "bert4rec": (BERT4RecModel, TrimmedBERT4Rec, {"n_factors": 64, "dropout_rate": 0.1, "lr": 3e-3, "mask_prob": 0.3}),
}


def make_trainer(gpu: int | None) -> Trainer:
    """Lightning's trainer, which leaves no files behind, for the GPU of a number or the CPU."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    where = {"accelerator": "cpu"} if gpu is None else {"accelerator": "gpu", "devices": [gpu]}
    return Trainer(**where, max_epochs=1, **quiet)


def new_transformer(kind: type, settings: dict[str, Any], seed: int) -> Any:
    """An untrained model."""
    seed_everything(seed, verbose=False)
    return kind(**settings)


def transformer_trials(items: int, new: Any, sequences: Sequences) -> Iterator[tuple[int, Recommend]]:
    """A model after each epoch, or after some where these are short, without end."""
    model, dataset = new(), as_dataset(sequences, items)
    some = math.ceil(TRIAL * model.batch_size / len(sequences))
    for epochs in count(some, some):
        model.fit_partial(dataset, some, some)
        yield epochs, partial(recommend, model, items, False)


def train_transformer(items: int, new: Any, sequences: Sequences, epochs: int) -> Recommend:
    """A model after some epochs."""
    model = new().fit_partial(as_dataset(sequences, items), epochs, epochs)
    return partial(recommend, model, items, False)
