"""The settings of pre-training: each field is a flag of pre_train.py, with type, default and help in one place.

The defaults are the published ones.
"""

from dataclasses import asdict, dataclass
from typing import Any

from utils.checkpoint import CODES, PREDICTED
from utils.cli import SWITCH, fraction, non_negative_float, positive_float, positive_int, seed, setting, share
from utils.config import ONLY_TYPED
from utils.masks import MASKS

LATEST, AUTO = "latest", "auto"  # what --resume may say in place of a path
RESUME = {"nargs": "?", "const": LATEST, "metavar": "PATH"}
# What a resumed run cannot change.
FIXED = ("tf_layer", "width", "heads", "predict", "attention", "no_auxiliary", "tie_embeddings", "seed")
FIXED += ("data_share", "data_share_seed")
BEST_BY = LOSS, NDCG = ("loss", "ndcg")
TRACKERS = ("tensorboard", "trackio", "wandb")
# Not taken from the checkpoint by --resume, and by --refit_of.
OF_ONE_START = ("resume", "init_from", "refit_of", "minutes", "ckpt_dir", "device")
OF_ONE_DATA = ("data_path", "eval_every", "eval_path", "patience", "best_by", "exclude_history", "log_file")


@dataclass(frozen=True)
class DataSettings:
    """What is read, in which order, how much at a time and how often."""

    data_path: str = setting("./data/pre_train", "train.pkl, token_id_list.pkl and embeddings")
    drop_short: bool = setting(False, "leave out histories of fewer than two items", **SWITCH)
    data_share: float = setting(1.0, "part of the users to train on; a larger part has those of a smaller", type=share)
    data_share_seed: int = setting(0, "which users --data_share draws, whatever --seed says", type=seed)
    batch_size: int = setting(12, "histories per forward pass and process", type=positive_int)
    tokens_per_batch: int | None = setting(
        None, "in place of --batch_size: batches of about this many tokens per pass and process", type=positive_int
    )
    epoch: int = setting(5, "passes over the histories", type=positive_int)
    max_steps: int | None = setting(None, "stop, and save, after this many steps", type=positive_int)
    minutes: float | None = setting(
        None, "stop, and save, after so many minutes of this start, evaluations included", type=positive_float
    )
    seed: int = setting(0, "order of the histories, initial weights, dropout", type=seed)


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of the model; the width of the embeddings comes from the data."""

    tf_layer: int = setting(3, "transformer layers", type=positive_int)
    width: int = setting(768, "hidden width", type=positive_int)
    heads: int | None = setting(None, "attention heads; by default one per 64 of width", type=positive_int)
    predict: str = setting(
        CODES, "what is predicted; items: those of the data's one catalog, for a log of your own", choices=PREDICTED
    )
    attention: str = setting(
        "item_block",
        "what a token sees; causal: of its own item only the codes before it",
        choices=tuple(MASKS),
    )
    no_auxiliary: bool = setting(False, "read the items' codes alone, and not their embeddings", **SWITCH)
    tie_embeddings: bool = setting(False, "one table for the embedding of codes and the head", **SWITCH)
    dropout: float = setting(0.1, "of embeddings, attention weights and block outputs", type=fraction)


@dataclass(frozen=True)
class OptimisationSettings:
    """How a step is taken, and on what device."""

    lr: float = setting(1e-4, "AdamW's learning rate", type=positive_float)
    schedule: str = setting("constant", "of the learning rate after the warm-up", choices=("constant", "cosine"))
    warmup: float = setting(0.0, "part of the training in which the learning rate rises from 0", type=fraction)
    weight_decay: float = setting(0.01, "AdamW's weight decay, on every parameter", type=non_negative_float)
    max_grad_norm: float | None = setting(None, "clip the gradient to this norm", type=positive_float)
    gradient_accumulation_steps: int = setting(1, "forward passes per step; as exact as one", type=positive_int)
    gradient_checkpointing: bool = setting(False, "compute each block twice to hold less of it in memory", **SWITCH)
    fsdp: bool = setting(False, "shard weights and moments over the GPUs", **SWITCH)
    mixed_precision: str = setting("no", "bf16: matrix products in it", choices=("no", "bf16"))
    compile: bool = setting(False, "torch.compile the transformer blocks", **SWITCH)
    device: str | None = setting(None, "by default whatever accelerate finds", choices=("cpu", "cuda"))


@dataclass(frozen=True)
class CheckpointSettings:
    """What is written, how often, and what a run starts from."""

    ckpt_dir: str = setting("./ckpt", "folder for the checkpoints, made if need be")
    save_every: int = setting(5000, "steps between checkpoints", type=positive_int)
    save_last: bool = setting(False, "write only the last checkpoint, layer_3_last.pt, and the best", **SWITCH)
    keep: int | None = setting(
        None, "keep the last K saves and the best; by default all, two to resume from", type=positive_int, metavar="K"
    )
    resume: str | None = setting(
        None, "resume from the checkpoint written last, or from PATH; auto: start where there is none", **RESUME
    )
    init_from: str | None = setting(
        None, "start from these weights, with their sizes; a resumed run does not read them again", metavar="WEIGHTS"
    )
    refit_of: str | None = setting(
        None, "train anew as this checkpoint was, with its settings and as many steps, on more data", metavar="CKPT"
    )
    eval_every: int | None = setting(None, "steps between evaluations on --eval_path", type=positive_int)
    best_by: str = setting(
        "loss", "which weights are best; ndcg: NDCG@10 of last items, on data of make_pre_train.py", choices=BEST_BY
    )
    exclude_history: bool = setting(
        False, "with --best_by ndcg: leave out items of the history, and users whose last item is one", **SWITCH
    )
    patience: int | None = setting(
        None, "stop, and save, when so many evaluations in a row have found nothing better", type=positive_int
    )
    eval_path: str = setting("./data/eval", "held-out histories, as eval.py reads them")
    log_file: str = setting("./logs/pre_train.jsonl", "JSON lines of the progress")
    log_with: str | None = setting(None, "also log to a tracker, in a folder beside the log", choices=TRACKERS)


@dataclass(frozen=True)
class Settings(CheckpointSettings, OptimisationSettings, ModelSettings, DataSettings):
    """All settings of pre-training."""

    def to_resume(self) -> dict[str, Any]:
        """The settings that every checkpoint holds, and that a resumed run has unless others are typed."""
        return {name: value for name, value in asdict(self).items() if name not in OF_ONE_START}

    def to_config(self) -> dict[str, Any]:
        """The settings that --config gives to another run for it to be the same."""
        return {name: value for name, value in asdict(self).items() if name not in ONLY_TYPED}


GROUPS = {  # of flags in --help
    "data": DataSettings,
    "model": ModelSettings,
    "optimisation": OptimisationSettings,
    "checkpoints and watching": CheckpointSettings,
}
