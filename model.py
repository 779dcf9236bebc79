"""RecGPT: item codes and item embeddings in, the K codes of the next item out. One class for every script.

In place of codes it can predict items: `predicts="items"`, for training on one catalog.

Letters of the shapes, here and in modeling_gpt2_rec.py and utils/past_key_values.py: B histories of a batch, L items of
one history, S item slots of all histories of a batch, K codes of an item (4 in the release), T tokens (K * L or
K * S), V rows of the vocabulary (the codes, 15,360 in the release, and its padding token, which is never read here), D
hidden width, E width of an item embedding, N items of a catalog, R rows with one history each, Q tokens that attend to
others, where they are not all T.
"""

import hashlib
from contextlib import nullcontext
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GPT2Config

from decoder import check_width
from modeling_gpt2_rec import GPT2ItemModel
from utils.checkpoint import (
    CODES,
    ITEMS,
    PREDICTED,
    UNSAID,
    agreed_config,
    fill_module,
    load_state,
    read_metadata,
)
from utils.data import IGNORED, WINDOW, Catalog, SeqBatch, token_positions
from utils.datasets import Origin, check_fit
from utils.errors import InputError, reason, shown
from utils.fsq import PUBLISHED, Codebook
from utils.masks import MASKS
from utils.model_card import Card, model_card
from utils.pretrained import (
    CARD,
    MODEL,
    TOKENIZER_FOLDER,
    fetched,
    known_origin,
    pretrained_directory,
    save_folder,
    upload,
)
from utils.search import ItemSearch
from utils.util import check_count

if TYPE_CHECKING:
    from ae_trainer import AutoEncoder

HEAD_WIDTH = 64  # as in GPT-2, which has 12 heads at width 768
ITEMS_AT_ONCE = 1 << 16  # of a catalog whose embeddings are read together
NOT_IN_WEIGHTS = ("attention", "levels", "codes_per_item")  # by which equal weights say something else
LOGITS_AT_ONCE = 512  # target tokens whose logits are held together: 30 MiB in float32, which fits a CPU's cache


@dataclass(frozen=True)
class RecGPTConfig:
    """Every size of the model, and which parts it has; ValueError for sizes that no model has."""

    layers: int = 3
    width: int = 768  # D
    heads: int = 0  # 0 stands for one head per 64 of width
    embedding_width: int = 768  # E
    window: int = WINDOW  # items of a history that the model can read
    dropout: float = 0.1
    predicts: str = CODES  # or ITEMS
    attention: str = UNSAID["attention"]  # name of a mask in utils/masks.py
    auxiliary: bool = True  # whether the items' embeddings are read, beside their codes
    levels: tuple[int, ...] = PUBLISHED.levels
    codes_per_item: int = PUBLISHED.per_item  # K

    def __post_init__(self) -> None:
        for name in ("layers", "width", "embedding_width", "window"):
            check_count(getattr(self, name), f"RecGPTConfig: {name}")
        if type(self.heads) is not int or self.heads < 0 or self.width % (self.heads or 1):
            raise ValueError(f"RecGPTConfig: {self.heads!r} heads do not divide a width of {self.width}")
        if self.embedding_width % self.codebook.per_item:
            slices = f"{self.codes_per_item} slices"
            raise ValueError(f"RecGPTConfig: an embedding width of {self.embedding_width} is not {slices}")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout <= 1:
            raise ValueError(f"RecGPTConfig: dropout {self.dropout!r} is no number in [0, 1]")
        if self.predicts not in PREDICTED:
            raise ValueError(f"RecGPTConfig: {self.predicts!r} is none of {PREDICTED}")
        if self.attention not in MASKS or type(self.auxiliary) is not bool:
            raise ValueError(
                f"RecGPTConfig: {self.attention!r} is none of {tuple(MASKS)}, or auxiliary {self.auxiliary!r} no bool"
            )

    @property
    def codebook(self) -> Codebook:
        """The codes that the model reads and predicts."""
        return Codebook(self.levels, self.codes_per_item)

    def noted(self) -> dict[str, Any]:
        """What JSON files say of it."""
        return {**asdict(self), "heads": self.attention_heads, "levels": list(self.levels)}

    @property
    def attention_heads(self) -> int:
        """Attention heads of every block: as given, or one per 64 of width."""
        return self.heads or max(1, self.width // HEAD_WIDTH)

    def gpt2(self) -> GPT2Config:
        """The backbone's configuration."""
        return GPT2Config(
            vocab_size=self.codebook.vocabulary,
            n_positions=self.window * self.codes_per_item,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.attention_heads,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            activation_function="gelu_pytorch_tanh",  # the published "gelu_new" in one pass
            bos_token_id=None,
            eos_token_id=None,
        )


class LossOutput(NamedTuple):
    """The loss of a batch as a sum, so that batches of different sizes can be added up."""

    total: Tensor  # () float, cross-entropy in nats, summed over the target tokens
    targets: Tensor  # () int64, how many target tokens there are

    @property
    def mean(self) -> Tensor:
        """() float, cross-entropy in nats per target token."""
        return self.total / self.targets


class Items(nn.Module):
    """What a model that predicts items reads of N items of a catalog, to score them.

    `ids` (N,) int64, `codes` (N, K) int64, and `texts` (N, E/K) float32, the sum of each embedding's K slices.
    """

    def __init__(self, catalog: Catalog, ids: np.ndarray | None = None):
        """Of some `ids` (N,) int64 of a catalog, or of all; raises what Catalog.embed and codes_of raise."""
        super().__init__()
        ids = np.arange(len(catalog)) if ids is None else ids
        self.register_buffer("ids", torch.from_numpy(ids), persistent=False)
        parts = [ids[start : start + ITEMS_AT_ONCE] for start in range(0, len(ids), ITEMS_AT_ONCE)]
        sums = [catalog.embed(part).reshape(len(part), catalog.codebook.per_item, -1).sum(1) for part in parts]
        self.register_buffer("codes", catalog.codes_of(ids), persistent=False)
        self.register_buffer("texts", torch.from_numpy(np.concatenate(sums)), persistent=False)

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.codes)

    def distinct(self) -> tuple[Tensor, Tensor]:
        """One item of each set of equal ones, (n,) int64, and which of them every item equals, (N,) int64."""
        rows = torch.cat([self.codes.float(), self.texts], dim=1).cpu().numpy()
        rows = np.ascontiguousarray(rows + 0.0)  # of equal bytes where equal, without a negative zero
        _, first, same = np.unique(rows.view(f"V{rows.strides[0]}").ravel(), return_index=True, return_inverse=True)
        return torch.from_numpy(first).to(self.codes.device), torch.from_numpy(same).to(self.codes.device)


class Head(nn.Linear):
    """Final hidden states to the codes of the next item, by one table (V, D) for all K of them.

    Another head has another `states`, of which both the loss and the logits are made.
    """

    def __init__(self, width: int, vocabulary: int):
        super().__init__(width, vocabulary, bias=False)

    def states(self, hidden: Tensor) -> Tensor:
        """What the table is multiplied with, of final hidden states (..., D): (..., D); in the paper, themselves."""
        return hidden

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of final hidden states (..., D)."""
        return super().forward(self.states(hidden))

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of final hidden states (T, D), summed over the targets (T,) int64: () float."""
        return summed_cross_entropy(self.states(hidden), self.weight, targets)


class RecGPT(nn.Module):
    """The model of the paper: embedding fusion, GPT-2 with item-block attention, one head for all codes of an item.

    Parameters have the names of the release. Without `config.auxiliary` the items' embeddings are not read. With
    `config.predicts == "items"`, which is not of the paper, there is no `pred_head`: an item's score is the product of
    the mean of the K final states and `item_vectors`, what stands for the item in the input. So one table and one
    projection of texts serve both ends, and nothing is learned twice.
    """

    def __init__(self, config: RecGPTConfig, gradient_checkpointing: bool = False):
        super().__init__()
        self.config = config
        self.items: Items | None = None  # where items are predicted: the candidates of the loss
        self.origin: dict[str, Any] = {}  # encoder, tokenizer and targets that it was trained on, as far as it is known
        self.gpt2model = GPT2ItemModel(config.gpt2(), MASKS[config.attention])
        if gradient_checkpointing:
            self.gpt2model.gradient_checkpointing_enable()
        if config.predicts == CODES:
            self.pred_head = Head(config.width, config.codebook.vocabulary)
        if config.auxiliary:
            self.linear_layer = nn.Linear(config.embedding_width // config.codes_per_item, config.width, bias=False)
        self.norm_seq = nn.LayerNorm(config.width)
        if config.auxiliary:
            self.norm_aux = nn.LayerNorm(config.width)

    def tie_embeddings(self) -> None:
        """Share one table (V, D) between the token embedding and the head, as GPT-2 does; checkpoints have it twice."""
        self.pred_head.weight = self.gpt2model.wte.weight

    def fingerprint(self) -> str:
        """Hash of all weights, and of what they do not show, sixteen hexadecimal digits, wherever they came from."""
        digest = hashlib.blake2b(digest_size=8)
        for parameter in self.parameters():
            digest.update(parameter.detach().cpu().float().numpy().tobytes())
        noted = self.config.noted()
        unlike = {name: noted[name] for name in NOT_IN_WEIGHTS if noted[name] != UNSAID[name]}
        if unlike:
            digest.update(repr(unlike).encode())
        return digest.hexdigest()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: torch.device | str = "cpu", revision: str | None = None, token: str | None = None
    ) -> "RecGPT":
        """Load the model of a directory that `save_pretrained` wrote, or of the Hub, in evaluation mode.

        Two tables that are equal, as those of `tie_embeddings`, are loaded as two.

        Args:
            name: the directory, or OWNER/NAME of a model of the Hub, of which nothing but weights and sizes is fetched.
            device: where the model is put.
            revision: branch, tag or commit of the Hub.
            token: of the Hub, for a private model; by default HF_TOKEN, or that of `hf auth login`.

        Raises:
            InputError: the Hub is out of reach or has no such model; a weight is missing, unknown, of another shape or
                not finite; or sizes in config.json are not those of the weights.
        """
        return load_model(fetched(name, revision, token), torch.device(device))[0]

    def save_pretrained(
        self, directory: str | Path, tokenizer: "AutoEncoder | None" = None, card: Card | None = None
    ) -> None:
        """Write config.json, model.safetensors and a model card into a directory, in the place of an earlier model.

        Args:
            directory: is made if need be.
            tokenizer: is written into its folder tokenizer/; the weights are of no use without it.
            card: what the model card says of data, metrics and limits. Without it, that they were not given.

        Raises:
            InputError: the directory holds other files, a weight is not finite, or the model was trained on the codes
                of another tokenizer.
            DiskError: no space; what was there stays.
        """
        with pretrained_directory(directory) as folder:
            self._save_all(folder, tokenizer, card, "path/to/this/folder")

    def push_to_hub(
        self,
        name: str,
        tokenizer: "AutoEncoder | None" = None,
        card: Card | None = None,
        private: bool = True,
        revision: str | None = None,
        message: str = "RecGPT: weights, sizes and model card",
        token: str | None = None,
    ) -> str:
        """Send what `save_pretrained` writes to the model OWNER/NAME of the Hub; returns the address of the commit.

        Args:
            name: OWNER/NAME; the model is made where there is none.
            tokenizer: as of `save_pretrained`.
            card: as of `save_pretrained`.
            private: only the owner can read the model; False: everyone can.
            revision: branch, which is made where there is none; by default the main branch.
            message: of the commit.
            token: of the Hub, one that may write; by default HF_TOKEN, or that of `hf auth login`.

        Raises:
            InputError: what `save_pretrained` refuses; no token, HF_HUB_OFFLINE, the Hub is out of reach or refuses; or
                `private`, and everyone can read the model that is there already.
        """
        write = partial(self._save_all, tokenizer=tokenizer, card=card, name=name)
        return upload(name, write, private, revision, message, token)

    def _save_all(self, folder: Path, tokenizer: "AutoEncoder | None", card: Card | None, name: str) -> None:
        """Write weights, tokenizer and card into a folder, for a model that will be loaded as `name`."""
        origin, state = self.origin, self.state_dict()
        if tokenizer is not None:
            tokenizer.save_weights(folder / TOKENIZER_FOLDER)
            read = (origin.get("encoder"), origin.get("tokenizer"))
            found = Origin(
                "the tokenizer", tokenizer.embedding_width, None, tokenizer.fingerprint(), tokenizer.codebook
            )
            check_fit(Origin("the model", self.config.embedding_width, *read, self.config.codebook), found)
            origin = {**origin, "tokenizer": tokenizer.fingerprint()}
        self.save_weights(folder, origin)
        table = state["gpt2model.wte.weight"].numel() * has_tied_embeddings(state)
        numbers = sum(value.numel() for value in state.values()) - table
        text = model_card(
            name, {**self.config.noted(), "parameters": numbers}, origin, tokenizer is not None, card or Card()
        )
        (folder / CARD).write_text(text, encoding="utf-8")

    def save_weights(self, folder: Path, origin: dict[str, Any] | None = None) -> None:
        """Write config.json and model.safetensors into a folder, which is made if need be.

        `origin` stands in for the attribute.
        """
        origin = self.origin if origin is None else origin
        save_folder(folder, MODEL, {**self.config.noted(), "origin": origin}, self.state_dict())

    def fuse(self, codes: Tensor, embeddings: Tensor) -> Tensor:
        """Token embedding plus auxiliary embedding of (..., S, K) codes and (..., S, E) float: (..., T, D) float."""
        tokens = self.norm_seq(self.gpt2model.wte(codes.flatten(-2)))  # (..., S, K) -> (..., T, D)
        if not self.config.auxiliary:
            return tokens
        slices = embeddings.unflatten(-1, (self.config.codes_per_item, -1)).flatten(-3, -2)  # (..., T, E/K)
        return tokens + self.norm_aux(self.linear_layer(slices))

    def hidden(self, batch: SeqBatch, cache: Cache | None = None, last: Tensor | None = None) -> Tensor:
        """Final hidden states (T, D) float of all tokens; with `last` (B,) int64 only of these item slots, (B, K, D).

        A `cache` receives the keys and values of every token (see utils/past_key_values.py).

        Raises:
            ValueError: a history is longer than the window, an item has another number of codes than the model's, or
                embeddings are of another width.
        """
        if batch.codes.shape[-1] != self.config.codes_per_item:
            raise ValueError(f"items have {batch.codes.shape[-1]} codes, the model reads {self.config.codes_per_item}")
        if batch.embeddings.shape[-1] != self.config.embedding_width:
            raise ValueError(
                f"embeddings are {batch.embeddings.shape[-1]} wide, the model reads {self.config.embedding_width}"
            )
        longest = max(items for _, items in batch.groups.shapes)
        if longest > self.config.window:
            raise ValueError(
                f"a history has {longest} items, the window {self.config.window}: keep its last (Sequences.last)"
            )
        inputs = self.fuse(batch.codes, batch.embeddings)[None]  # (1, T, D)
        positions = token_positions(batch.positions, self.config.codes_per_item)[None]
        hidden = self.gpt2model(inputs, positions, groups=batch.groups, past_key_values=cache, last=last)
        return hidden if last is not None else hidden[0]

    def forward(self, batch: SeqBatch) -> LossOutput:
        """Next-item loss: the K tokens of an item predict the K codes of the next item, all at once.

        A model that predicts items does so among `items`. The loss of one counts as that of K target tokens, so that K
        times the mean is an item's in either case.
        Of a batch with targets at the last slots only the last block computes only these, without dropout.

        Raises:
            ValueError: the batch has no targets, there are no `items` to predict, or what `hidden` raises.
        """
        if batch.targets is None:
            raise ValueError("the batch has nothing to predict: make it with training_batch")
        if self.config.predicts == ITEMS and self.items is None:
            raise ValueError("the model does not know among which items it predicts: model.items = Items(catalog)")
        hidden = self.hidden(batch, last=batch.last if batch.last_only else None).flatten(0, -2)  # (T, D) or (B*K, D)
        targets = batch.targets.flatten()  # (T,) or (B*K,)
        if self.config.predicts == ITEMS:
            queries = hidden.unflatten(0, (-1, self.config.codes_per_item)).mean(1)  # (S, D) or (B, D)
            total = summed_cross_entropy(queries, self.item_vectors(self.items), batch.target_items)
        else:
            total = self.pred_head.loss(hidden, targets)
        return LossOutput(total, (targets != IGNORED).sum())

    def item_vectors(self, items: Items) -> Tensor:
        """What stands for items in the input, summed over their K tokens and without norms: (N, D) float."""
        tokens = F.embedding_bag(items.codes, self.gpt2model.wte.weight, mode="sum")
        return tokens + self.linear_layer(items.texts) if self.config.auxiliary else tokens

    @torch.no_grad()
    def item_search(self, items: Items, k: int) -> ItemSearch:
        """The search of lists of k among items, on their device, whose ids ascend; equal items tie."""
        vectors, (one, same) = self.item_vectors(items).float(), items.distinct()
        if len(one) == len(items):
            return ItemSearch(vectors, items.ids, k)
        return ItemSearch(vectors[one], items.ids, k, same)

    def flops_per_token(self) -> float:
        """FLOPs of training on one token, forward and backward, in all matrix products but those of attention."""
        unused = self.gpt2model.wpe.weight.numel()  # looked up
        if self.config.predicts == ITEMS:
            unused += (
                self.gpt2model.wte.weight.numel() - self.config.width * len(self.items) / self.config.codes_per_item
            )
        elif self.gpt2model.wte.weight is not self.pred_head.weight:
            unused += self.gpt2model.wte.weight.numel()
        return 6.0 * (sum(parameter.numel() for parameter in self.parameters()) - unused)

    def next_item(self, batch: SeqBatch) -> Tensor:
        """What the head says of every history's next item: `next_item_logits`, or `next_item_queries`."""
        self.check_predicts()
        return self.said(self.hidden(batch, last=batch.last))

    def said(self, hidden: Tensor) -> Tensor:
        """What the head says by the final hidden states (B, K, D) of last items: logits (B, K, V) or queries (B, D)."""
        return hidden.mean(1).float() if self.config.predicts == ITEMS else self.logits(hidden)

    def next_item_logits(self, batch: SeqBatch) -> Tensor:
        """Logits of the codes of every history's next item: (B, K, V) float32.

        Raises:
            ValueError: dropout is on, the model predicts items, or what `hidden` raises.
        """
        self.check_predicts()
        return self.logits(self.hidden(batch, last=batch.last))

    def next_item_queries(self, batch: SeqBatch) -> Tensor:
        """Where items are predicted: what `item_vectors` are multiplied with to score every user's next item, (B, D).

        Raises:
            ValueError: dropout is on, the model predicts codes, or what `hidden` raises.
        """
        if self.config.predicts != ITEMS:
            raise ValueError("a model that predicts codes has no queries: call next_item_logits")
        return self.next_item(batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) float32 of the final hidden states (..., D) of some tokens."""
        if self.config.predicts != CODES:
            raise ValueError("a model that predicts items has no logits of codes: call next_item_queries")
        return self.pred_head(hidden).float()

    def check_predicts(self) -> None:
        """ValueError while dropout is on: predictions would be random."""
        if self.training and self.config.dropout:
            raise ValueError("dropout is on, and predictions would be random: call model.eval() first")


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of hidden states (T, D) and a head (V, D), () float, summed over the targets (T,) int64.

    The (T, V) logits are computed in chunks and never held. That is faster, too: a chunk stays in the cache.
    """
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=LOGITS_AT_ONCE)
    if not torch.is_autocast_enabled(hidden.device.type):
        return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)
    dtype = torch.get_autocast_dtype(hidden.device.type)  # torch does not cast for this function; sum in float32
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    return F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options).float().sum()


def load_model(
    path: str | Path, device: torch.device | str, layers: int | None = None, mapped: bool = False
) -> tuple[RecGPT, dict[str, Any]]:
    """Load a checkpoint: a model in evaluation mode, its sizes read from the weights, and the JSON beside them.

    The checkpoint may be the release's, its zip parts, or a directory of `RecGPT.save_pretrained`; `layers` is what the
    user typed as --tf_layer. With `mapped` the weights of a directory are not copied, so that several processes share
    them; they are to be read only.

    Raises:
        InputError: the file is damaged or does not hold a RecGPT model, or `layers` contradicts it.
    """
    state, metadata = load_state(path), read_metadata(path)
    config = read_config(copy(state) if Path(path).is_dir() else state, metadata, path)  # a directory's is not cut
    if layers is not None and layers != config.layers:
        raise InputError(
            f"--tf_layer {layers} contradicts {path}, which has {config.layers} layers. Leave the flag out."
        )
    with torch.device("meta") if mapped else nullcontext():
        model = RecGPT(config)
    model.origin = known_origin(metadata)
    fill_module(model, state, path, copy=not mapped)
    return model.to(device).eval(), metadata


def read_config(state: dict[str, Tensor], metadata: dict[str, Any], path: str | Path) -> RecGPTConfig:
    """Read every size from the weights of a checkpoint, and cut the release's token embedding to the V rows in use.

    Raises:
        InputError: the weights are not those of a RecGPT model, or the JSON beside them names other sizes.
    """
    said, noted = agreed_config(state, metadata, path), metadata.get("config", {})
    codebook = Codebook.read(said, path)
    try:
        width = state["gpt2model.wte.weight"].shape[1]
        state["gpt2model.wte.weight"] = state["gpt2model.wte.weight"][: codebook.vocabulary]
        config = RecGPTConfig(
            layers=1 + max(int(name.split(".")[2]) for name in state if name.startswith("gpt2model.h.")),
            width=width,
            heads=checkpoint_heads(said["heads"], width, path),
            embedding_width=(
                state["linear_layer.weight"].shape[1] * codebook.per_item
                if said["auxiliary"]
                else said["embedding_width"]
            ),
            window=state["gpt2model.wpe.weight"].shape[0] // codebook.per_item,
            dropout=noted.get("dropout", RecGPTConfig.dropout),
            predicts=said["predicts"],
            attention=said["attention"],
            auxiliary=said["auxiliary"],
            levels=codebook.levels,
            codes_per_item=codebook.per_item,
        )
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(
            f"{path} does not hold the weights of a RecGPT model (missing or odd: {reason(error)}). "
            "Give a checkpoint that pre_train.py wrote, or the release's."
        ) from error
    for name in ("layers", "width", "embedding_width", "window"):
        if name in noted and noted[name] != getattr(config, name):
            raise InputError(
                f"{path}: {name} is {getattr(config, name)} by the weights, {shown(noted[name])} by the JSON beside. "
                "Restore it, or write or fetch both again."
            )
    check_width(config.embedding_width, path, codebook)
    blocks, tables = 12 * width * config.layers, codebook.vocabulary
    held = sum(value.numel() for value in state.values())
    if width * (blocks + tables) > held:  # a model of such sizes may not fit in memory
        raise InputError(
            f"{path} holds {held} numbers, too few for {config.layers} layers of width {width}. "
            "Give a checkpoint that pre_train.py wrote, or the release's."
        )
    if config.window < 2:
        raise InputError(f"{path} has a window of {config.window} items: no model of this kind.")
    return config


def has_tied_embeddings(state: dict[str, Tensor]) -> bool:
    """Whether the token embedding and the head of these weights, as read_config leaves them, are one table."""
    embedding, head = state["gpt2model.wte.weight"], state.get("pred_head.weight")
    return head is not None and head.dtype == embedding.dtype and torch.equal(embedding, head)


def checkpoint_heads(heads: Any, width: int, path: str | Path) -> int:
    """Attention heads of a checkpoint, as it says, or None.

    Where it does not say, as the release, they are one per 64 of width; for any other width than the release's this
    guess is printed. InputError if they do not divide the width.
    """
    if heads is None:
        heads = RecGPTConfig(width=width).attention_heads
        if width != RecGPTConfig.width:
            print(f"{path} does not say how many attention heads it has: {heads}, one per {HEAD_WIDTH} of width")  # noqa: T201
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(f"{path}, or the JSON beside it, names {heads!r} heads for a width of {width}. Restore it.")
    return heads
