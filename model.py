"""RecGPT: item codes and item embeddings in, the four codes of the next item out; one class for every script."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GPT2Config

from modeling_gpt2_rec import GPT2ItemModel
from utils.checkpoint import fill_module, load_state, read_about
from utils.data import WINDOW, SeqBatch
from utils.errors import InputError
from utils.fsq import CODES_PER_ITEM, VOCABULARY, check_width

HEAD_WIDTH = 64  # of GPT-2: 12 heads at width 768
LOGITS_AT_ONCE = 8192  # target tokens: 480 MiB of logits in float32


@dataclass(frozen=True)
class RecGPTConfig:
    """Every size of the model; `heads` 0 stands for one head per 64 of width, as in GPT-2."""

    layers: int = 3
    width: int = 768  # D
    heads: int = 0
    embedding_width: int = 768  # E
    window: int = WINDOW  # items
    dropout: float = 0.1

    def gpt2(self) -> GPT2Config:
        """The configuration of the backbone."""
        return GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=self.window * CODES_PER_ITEM,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads or max(1, self.width // HEAD_WIDTH),
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )


class LossOutput(NamedTuple):
    """Summed cross-entropy in nats and the number of target tokens it was summed over."""

    total: Tensor  # () float
    targets: Tensor  # () int64

    @property
    def mean(self) -> Tensor:
        """() float, cross-entropy per target token."""
        return self.total / self.targets


class RecGPT(nn.Module):
    """The model of the paper: embedding fusion, GPT-2 with item-block attention, one head for all four codes.

    Parameter names are those of the release.
    """

    def __init__(self, config: RecGPTConfig):
        super().__init__()
        self.config = config
        self.gpt2model = GPT2ItemModel(config.gpt2(), CODES_PER_ITEM)
        self.pred_head = nn.Linear(config.width, VOCABULARY, bias=False)
        self.linear_layer = nn.Linear(config.embedding_width // CODES_PER_ITEM, config.width, bias=False)
        self.norm_seq = nn.LayerNorm(config.width)
        self.norm_aux = nn.LayerNorm(config.width)

    def fuse(self, batch: SeqBatch) -> Tensor:
        """Token embedding plus auxiliary embedding of every slot: (R, L) items -> (R, T, D) float."""
        tokens = self.norm_seq(self.gpt2model.wte(batch.codes.flatten(1)))  # (R, T, D)
        slices = batch.embeddings.unflatten(-1, (CODES_PER_ITEM, -1)).flatten(1, 2)  # (R, T, E/K)
        auxiliary = self.norm_aux(self.linear_layer(slices))  # (R, T, D)
        real = (batch.history >= 0).repeat_interleave(CODES_PER_ITEM, dim=1)  # (R, T)
        return tokens + auxiliary * real[..., None]

    def hidden(self, batch: SeqBatch, cache: Cache | None = None, cached_history: Tensor | None = None) -> Tensor:
        """Final hidden states (R, T, D).

        With a `cache` (see utils/past_key_values.py) the batch holds only the new items; `cached_history`
        (R, cached items) int64 tells the history of every cached slot, -1 where it is padding.
        """
        history = batch.history if cached_history is None else torch.cat([cached_history, batch.history], dim=1)
        within_item = torch.arange(CODES_PER_ITEM, device=history.device)
        positions = (batch.positions[..., None] * CODES_PER_ITEM + within_item).flatten(1)  # (R, T)
        history = history.repeat_interleave(CODES_PER_ITEM, dim=1)
        return self.gpt2model(self.fuse(batch), history, positions, cache)

    def forward(self, batch: SeqBatch) -> LossOutput:
        """Next-item loss: the four positions of an item predict the four codes of the next one, all at once."""
        hidden = self.hidden(batch).unflatten(1, (-1, CODES_PER_ITEM))  # (R, L, K, D)
        has_next = (batch.history[:, :-1] == batch.history[:, 1:]) & (batch.history[:, 1:] >= 0)  # (R, L-1)
        sources = hidden[:, :-1][has_next].flatten(0, 1)  # (target tokens, D)
        targets = batch.codes[:, 1:][has_next].flatten()  # (target tokens,)
        # Beyond the limit in chunks, so that the (target tokens, V) logits are not held at once; slower below it.
        options = nn.LinearCrossEntropyOptions() if len(targets) > LOGITS_AT_ONCE else None
        total = F.linear_cross_entropy(sources, self.pred_head.weight, targets, reduction="sum", options=options)
        return LossOutput(total, torch.tensor(targets.numel(), device=total.device))

    def next_item_logits(self, batch: SeqBatch, cache: Cache | None = None, cached_history: Tensor | None = None):
        """Logits of the four codes of every history's next item: (B, K, V) float32."""
        hidden = self.hidden(batch, cache, cached_history).unflatten(1, (-1, CODES_PER_ITEM)).flatten(0, 1)
        return self.pred_head(hidden[batch.last]).float()  # (B, K, V)


def load_model(path: str | Path, device: torch.device, layers: int | None = None) -> tuple[RecGPT, dict[str, Any]]:
    """A model in evaluation mode with the weights of a checkpoint, every size read from it, and its JSON.

    The release's token embedding has 50,257 rows, of which only the first V are ever used.

    Args:
        path: release or own checkpoint, or zip parts of one.
        device: where the model goes.
        layers: what the user typed as --tf_layer, to be held against the checkpoint.

    Raises:
        InputError: damaged file, not a RecGPT model, or `layers` contradicts it.
    """
    state, about = load_state(path), read_about(path)
    try:
        width = state["gpt2model.wte.weight"].shape[1]
        state["gpt2model.wte.weight"] = state["gpt2model.wte.weight"][:VOCABULARY]
        config = RecGPTConfig(
            layers=1 + max(int(name.split(".")[2]) for name in state if name.startswith("gpt2model.h.")),
            width=width,
            heads=heads_of(about, width, path),
            embedding_width=state["linear_layer.weight"].shape[1] * CODES_PER_ITEM,
            window=state["gpt2model.wpe.weight"].shape[0] // CODES_PER_ITEM,
        )
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(
            f"{path} does not hold the weights of a RecGPT model (missing or odd: {error}). "
            "Give a checkpoint that pre_train.py wrote, or the release's."
        ) from error
    if layers is not None and layers != config.layers:
        raise InputError(
            f"--tf_layer {layers} contradicts {path}, which has {config.layers} layers. Leave the flag out."
        )
    check_width(config.embedding_width, path)
    if config.window < 2 or width < 1:
        raise InputError(f"{path} has a window of {config.window} items and width {width}: no model of this kind.")
    model = RecGPT(config)
    fill_module(model, state, path)
    return model.to(device).eval(), about


def heads_of(about: dict[str, Any], width: int, path: str | Path) -> int:
    """Attention heads, which no shape tells: from the JSON beside the checkpoint, otherwise one per 64 of width.

    Raises:
        InputError: the JSON names heads that do not divide the width.
    """
    config = about.get("config", {})
    heads = config.get("heads", max(1, width // HEAD_WIDTH)) if isinstance(config, dict) else None
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(f"the JSON beside {path} names {heads!r} heads for a width of {width}. Restore it.")
    return heads
