"""Pre-train RecGPT on the histories of data/pre_train.

    accelerate launch pre_train.py --batch_size 40 --epoch 5 --tf_layer 3
    python pre_train.py --data_path data/mine --width 256 --max_steps 2000

Saves at every tenth of the first epoch, every 5,000 steps, at the end of each epoch and at --max_steps, in --ckpt_dir.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from model import HEAD_WIDTH, RecGPT, RecGPTConfig
from utils.checkpoint import save_state
from utils.cli import non_negative_float, parser, positive_float, positive_int, run, seed
from utils.data import WINDOW, SeqBatch, epoch_batches, equal_work_batches, prefetched, training_batch
from utils.errors import InputError
from utils.files import check_writable
from utils.fsq import CODES_PER_ITEM, check_width
from utils.packed import fits, open_packed, pack
from utils.release import Interactions
from utils.TimeLogger import TimeLogger
from utils.util import set_seed

CHECKPOINT_STEPS = 5000
TENTHS = 10
# Flags that the JSON beside a checkpoint repeats; the sizes are in its config.
TOLD = (
    "lr",
    "weight_decay",
    "batch_size",
    "tokens_per_batch",
    "epoch",
    "mixed_precision",
    "drop_short",
    "seed",
    "data_path",
)


def parse() -> argparse.Namespace:
    """The command line; the defaults are the published ones."""
    flags = parser(__doc__)
    flags.add_argument("--data_path", default="./data/pre_train", help="train.pkl, token_id_list.pkl and embeddings")
    flags.add_argument("--ckpt_dir", default="./ckpt", help="folder for the checkpoints, made if need be")
    flags.add_argument("--log_file", default="./logs/pre_train.jsonl", help="JSON lines of the progress")
    flags.add_argument("--lr", type=positive_float, default=1e-4, help="AdamW's learning rate, constant")
    flags.add_argument(
        "--weight_decay", type=non_negative_float, default=0.01, help="AdamW's weight decay, on every parameter"
    )
    flags.add_argument("--batch_size", type=positive_int, default=12, help="histories per step and process")
    flags.add_argument("--epoch", type=positive_int, default=5, help="passes over the histories")
    flags.add_argument("--max_steps", type=positive_int, help="stop, and save, after this many steps")
    flags.add_argument("--tf_layer", type=positive_int, default=3, help="transformer layers")
    flags.add_argument("--width", type=positive_int, default=768, help="hidden width")
    flags.add_argument("--heads", type=positive_int, help="attention heads; by default one per 64 of width")
    flags.add_argument("--seed", type=seed, default=0, help="order of the histories, initial weights, dropout")
    flags.add_argument("--drop_short", action="store_true", help="leave out histories of fewer than two items")
    flags.add_argument("--device", choices=("cpu", "cuda"), help="by default whatever accelerate finds")
    flags.add_argument(
        "--tokens_per_batch",
        type=positive_int,
        help="batches of equal work instead of --batch_size histories: about this many tokens per step and process",
    )
    add_speed_flags(flags)
    return flags.parse_args()


def add_speed_flags(flags: argparse.ArgumentParser) -> None:
    """What makes a step faster on a GPU, shared with benchmarks/train.py."""
    flags.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: matrix products in it")
    flags.add_argument("--compile", action="store_true", help="torch.compile the transformer blocks")


def main() -> None:
    """Load, build, train, save."""
    args = parse()
    config = check_sizes(args)
    accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision=args.mixed_precision)
    if accelerator.device.type == "cpu":
        accelerator.print("no GPU in use: training on the CPU")
    data, header = open_data(args, accelerator)
    config = RecGPTConfig(**config, embedding_width=data.catalog.embeddings.shape[1])
    check_width(config.embedding_width, data.catalog.source)

    set_seed(args.seed)
    model = compiled(RecGPT(config), args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    set_seed(args.seed + accelerator.process_index)  # each process its own dropout

    steps_per_epoch = sum(1 for _ in epoch_rows(data, config, args, accelerator, epoch=0))  # the same in every epoch
    steps = min(args.max_steps or steps_per_epoch * args.epoch, steps_per_epoch * args.epoch)
    accelerator.print(
        f"{len(data.sequences)} histories, {len(data.sequences.items)} interactions, {len(data.catalog)} items; "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters; {steps} steps of "
        f"{len(data.sequences) / steps_per_epoch:.4g} histories; "
        f"guessing from code frequencies has a loss of {header['guessing_loss']:.3f} nats"
    )

    step, loss = 0, None
    model.train()
    with TimeLogger(steps, path=Path(args.log_file), quiet=not accelerator.is_main_process) as logger:
        for epoch in range(args.epoch):
            for batch in prefetched(training_batches(data, config, args, accelerator, epoch), logger.waited):
                loss = train_step(model, optimizer, batch.to(accelerator.device), accelerator)
                step += 1
                logger.update(loss, batch)
                stopping = step == steps and args.max_steps is not None
                for name in checkpoint_names(args.tf_layer, epoch, step, steps_per_epoch, stopping):
                    check_loss(loss, step)
                    save(Path(args.ckpt_dir) / name, model, accelerator, about(args, config, data, step, loss))
                if step == steps:
                    break
            if step == steps:
                break
    accelerator.print(f"finished {step} steps, last loss {loss.item():.4f} nats; checkpoints in {args.ckpt_dir}")


def open_data(args: argparse.Namespace, accelerator: Accelerator) -> tuple[Interactions, dict[str, Any]]:
    """The packed form of --data_path and its header, mapped; one process makes it where there is none that fits."""
    if accelerator.is_main_process and not fits(args.data_path, args.drop_short):
        print(f"packing {args.data_path}, once: a few minutes where there are millions of histories")
        pack(args.data_path, drop_short=args.drop_short)
    accelerator.wait_for_everyone()
    return open_packed(args.data_path)


def train_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: SeqBatch, accelerator: Accelerator
) -> torch.Tensor:
    """One step on the mean loss over the target tokens of all processes' batches; returns it, () float in nats."""
    output = model(batch)
    targets = accelerator.reduce(output.targets, reduction="sum")
    # Gradients are averaged over processes: weigh each one's sum so that the average is that of one large batch.
    accelerator.backward(output.total * accelerator.num_processes / targets)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return accelerator.reduce(output.total.detach(), reduction="sum") / targets


def compiled(model: RecGPT, args: argparse.Namespace) -> RecGPT:
    """The model, its blocks compiled with --compile: all but attention, whose groups differ from batch to batch."""
    if args.compile:
        for block in model.gpt2model.h:
            block.compile(dynamic=True)
    return model


def epoch_rows(
    data: Interactions, config: RecGPTConfig, args: argparse.Namespace, accelerator: Accelerator, epoch: int
) -> Iterator[np.ndarray]:
    """Histories of each step of an epoch, all processes together."""
    processes = accelerator.num_processes
    if args.tokens_per_batch is None:
        return epoch_batches(len(data.sequences), args.batch_size * processes, args.seed, epoch)
    tokens = (np.minimum(data.sequences.lengths, config.window) - 1) * CODES_PER_ITEM
    return equal_work_batches(tokens, args.tokens_per_batch * processes, args.seed, epoch)


def training_batches(
    data: Interactions, config: RecGPTConfig, args: argparse.Namespace, accelerator: Accelerator, epoch: int
) -> Iterator[SeqBatch]:
    """This process's share of every step's histories, the last `window` items of each."""
    processes = accelerator.num_processes
    for rows in epoch_rows(data, config, args, accelerator, epoch):
        share = rows[accelerator.process_index :: processes]
        if not len(share):  # a step of fewer histories than processes: the first counts twice
            share = rows[:1]
        batch = training_batch(data.sequences.select(share).last(config.window), data.catalog)
        yield batch.pin_memory() if accelerator.device.type == "cuda" else batch


def checkpoint_names(layers: int, epoch: int, step: int, steps_per_epoch: int, stopping: bool) -> Iterator[str]:
    """Names under which the weights are saved after `step` (from 1); none after most steps."""
    in_epoch = step - epoch * steps_per_epoch
    if epoch == 0:
        for tenth in range(1, TENTHS + 1):
            if in_epoch == -(-tenth * steps_per_epoch // TENTHS):
                yield f"layer_{layers}_epoch_0_model_{tenth:02d}.pt"
    if step % CHECKPOINT_STEPS == 0 or stopping:
        yield f"layer_{layers}_epoch_{epoch}_step_{step}.pt"
    if in_epoch == steps_per_epoch:
        yield f"layer_{layers}_epoch_{epoch}.pt"


def save(path: Path, model: torch.nn.Module, accelerator: Accelerator, about: dict[str, Any]) -> None:
    """Write a checkpoint, from one process."""
    if accelerator.is_main_process:
        save_state(path, accelerator.unwrap_model(model), about)
    accelerator.wait_for_everyone()


def about(
    args: argparse.Namespace, config: RecGPTConfig, data: Interactions, step: int, loss: torch.Tensor
) -> dict[str, Any]:
    """What the JSON beside a checkpoint tells."""
    known = {"tokenizer": data.tokenizer} if data.tokenizer else {}
    return {
        "config": {**vars(config), "heads": config.gpt2().n_head},
        "step": step,
        "loss": loss.item(),
        "training": {name: vars(args)[name] for name in TOLD},
        "versions": {"torch": torch.__version__},
        **known,
    }


def check_sizes(args: argparse.Namespace) -> dict[str, int]:
    """Layers, width and heads, and whether there is a place to write to.

    Raises:
        InputError: the width does not divide by the heads, a GPU that is not there, batches shorter than a history, or
            a folder that cannot be written.
    """
    heads = args.heads or max(1, args.width // HEAD_WIDTH)
    if args.width % heads:
        raise InputError(f"--width {args.width} does not divide by {heads} heads: change --width or --heads.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no GPU here. Leave the flag out to train on the CPU.")
    if args.tokens_per_batch is not None and args.tokens_per_batch < WINDOW * CODES_PER_ITEM:
        raise InputError(
            f"--tokens_per_batch {args.tokens_per_batch} is less than one history may have: give 1024 or more."
        )
    check_writable(Path(args.ckpt_dir) / "any.pt")
    check_writable(args.log_file)
    return {"layers": args.tf_layer, "width": args.width, "heads": heads}


def check_loss(loss: torch.Tensor, step: int) -> None:
    """InputError when training has diverged, before such weights are saved."""
    if not torch.isfinite(loss):
        raise InputError(
            f"the loss is {loss.item()} at step {step}: training has diverged. "
            "Lower --lr; the checkpoints written so far are kept."
        )


if __name__ == "__main__":
    run(main)
