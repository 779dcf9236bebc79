"""Pre-train RecGPT on the histories of data/pre_train.

    accelerate launch pre_train.py --batch_size 40 --epoch 5 --tf_layer 3
    python pre_train.py --data_path data/mine --width 256 --max_steps 2000
    torchrun --nproc_per_node 2 pre_train.py --device cpu
    python pre_train.py --resume

Saves at every tenth of the first epoch, every 5,000 steps, at the end of each epoch, at --max_steps, on SIGTERM and on
Ctrl-C, in --ckpt_dir. --resume goes on from the checkpoint written last, with the settings it was written with unless
others are typed; on the CPU the weights come out as if nothing had stopped the run, bit by bit.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import contextlib
import importlib.metadata
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from decoder import check_width
from eval import check_fit, evaluate
from model import HEAD_WIDTH, RecGPT, RecGPTConfig
from utils.cli import (
    INTERRUPTED,
    SWITCH,
    non_negative_float,
    parse_again,
    parser,
    positive_float,
    positive_int,
    run,
    seed,
    share,
)
from utils.data import WINDOW, SeqBatch
from utils.datasets import HELD_OUT, Interactions, load_eval
from utils.errors import InputError
from utils.files import check_writable, content
from utils.fsq import CODES_PER_ITEM
from utils.packed import data_fingerprint, is_current, open_packed, pack
from utils.TimeLogger import TimeLogger
from utils.training.batches import prefetched
from utils.training.plan import Place, Plan, Work
from utils.training.processes import HostSum, Notice, check_same_start, lost_processes_told, start_accelerator
from utils.training.state import AUTO, LATEST, Checkpoints, Saved, find_state, step_seed
from utils.util import set_seed

FIXED = ("tf_layer", "width", "heads", "seed")  # what a resumed run cannot change
OF_THIS_START = ("resume", "ckpt_dir", "device", "debug")  # flags that a resumed run does not take from the checkpoint


def flags() -> argparse.ArgumentParser:
    """The command line; the defaults are the published ones."""
    made = parser(__doc__)
    data = made.add_argument_group("data")
    data.add_argument("--data_path", default="./data/pre_train", help="train.pkl, token_id_list.pkl and embeddings")
    data.add_argument("--drop_short", **SWITCH, help="leave out histories of fewer than two items")
    data.add_argument("--batch_size", type=positive_int, default=12, help="histories per forward pass and process")
    data.add_argument(
        "--tokens_per_batch",
        type=positive_int,
        help="batches of equal work instead of --batch_size histories: about this many tokens per pass and process",
    )
    data.add_argument("--epoch", type=positive_int, default=5, help="passes over the histories")
    data.add_argument("--max_steps", type=positive_int, help="stop, and save, after this many steps")
    data.add_argument("--seed", type=seed, default=0, help="order of the histories, initial weights, dropout")

    model = made.add_argument_group("model")
    model.add_argument("--tf_layer", type=positive_int, default=3, help="transformer layers")
    model.add_argument("--width", type=positive_int, default=768, help="hidden width")
    model.add_argument("--heads", type=positive_int, help="attention heads; by default one per 64 of width")
    model.add_argument("--dropout", type=share, default=0.1, help="of embeddings, attention weights and block outputs")

    optimisation = made.add_argument_group("optimisation")
    optimisation.add_argument("--lr", type=positive_float, default=1e-4, help="AdamW's learning rate")
    optimisation.add_argument(
        "--schedule", choices=("constant", "cosine"), default="constant", help="of the learning rate after the warm-up"
    )
    optimisation.add_argument(
        "--warmup", type=share, default=0.0, help="share of the training in which it rises from 0"
    )
    optimisation.add_argument(
        "--weight_decay", type=non_negative_float, default=0.01, help="AdamW's weight decay, on every parameter"
    )
    optimisation.add_argument("--max_grad_norm", type=positive_float, help="clip the gradient to this norm")
    optimisation.add_argument(
        "--gradient_accumulation_steps", type=positive_int, default=1, help="forward passes per step; as exact as one"
    )
    optimisation.add_argument(
        "--gradient_checkpointing", **SWITCH, help="compute each block twice to hold less of it in memory"
    )
    optimisation.add_argument("--fsdp", **SWITCH, help="share weights and moments out among the GPUs")
    add_speed_flags(optimisation)
    optimisation.add_argument("--device", choices=("cpu", "cuda"), help="by default whatever accelerate finds")

    watching = made.add_argument_group("checkpoints and watching")
    watching.add_argument("--ckpt_dir", default="./ckpt", help="folder for the checkpoints, made if need be")
    watching.add_argument("--save_every", type=positive_int, default=5000, help="steps between checkpoints")
    watching.add_argument(
        "--keep",
        type=positive_int,
        metavar="K",
        help="keep what the last K saves wrote, and the best; by default all, with the last two to resume from",
    )
    watching.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="PATH",
        help=f"go on from the checkpoint written last, or from PATH; {AUTO}: start where there is none",
    )
    watching.add_argument("--eval_every", type=positive_int, help="steps between evaluations on --eval_path")
    watching.add_argument("--eval_path", default="./data/eval", help="held-out histories, as eval.py reads them")
    watching.add_argument("--log_file", default="./logs/pre_train.jsonl", help="JSON lines of the progress")
    watching.add_argument(
        "--log_with",
        choices=("tensorboard", "trackio", "wandb"),
        help="also tell a tracker, in a folder beside the log",
    )
    return made


def add_speed_flags(flags: Any) -> None:
    """What makes a step faster on a GPU, shared with benchmarks/train.py."""
    flags.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="bf16: matrix products in it")
    flags.add_argument("--compile", **SWITCH, help="torch.compile the transformer blocks")


@lost_processes_told()
def main() -> None:
    """Load, build or resume, train, report."""
    args, saved = parse()
    check_flags(args)
    accelerator = start_accelerator(args)
    data, header = open_data(args, accelerator)
    model, optimizer = build(args, data)
    held_out = load_held_out(args, model, data)
    flops = model.flops_per_token()
    checkpoints = Checkpoints(args.ckpt_dir, args.keep, accelerator, facts(args, model.config, data, accelerator))
    plan = Plan(
        data, args, model.config.window, accelerator.process_index, accelerator.num_processes, accelerator.device
    )
    check_same_start(accelerator, saved.place if saved else Place(), checkpoints.facts)
    model, optimizer = accelerator.prepare(model, optimizer)
    place = checkpoints.go_on_from(saved, model, optimizer) if saved else checkpoints.begin()

    steps, log_file = plan.steps(place), Path(args.log_file) if accelerator.is_main_process else None
    accelerator.print(
        f"{plan.histories} histories, {len(data.sequences.items)} interactions, {len(data.catalog)} items; "
        f"{flops / 6e6:.1f} M parameters besides embeddings; {accelerator.num_processes} process(es); {steps} "
        f"steps, {place.step} of them taken; guessing from code frequencies has a loss of "
        f"{header['guessing_loss']:.3f} nats"
    )
    with TimeLogger(steps, place.step, log_file, flops=flops, track=tracker(args, accelerator)) as logger:
        logger.note({"start": checkpoints.facts["training"], "processes": accelerator.num_processes}, place.step)
        place, loss, interrupted = train(model, optimizer, plan, place, checkpoints, held_out, logger)
    accelerator.end_training()
    if loss is None:
        accelerator.print(f"nothing to do: {place.step} steps were taken")
    elif place.step < steps:
        notice = "Ctrl-C" if interrupted else "SIGTERM"
        accelerator.print(f"told to stop ({notice}) after step {place.step} of {steps}: go on with --resume")
        sys.exit(INTERRUPTED if interrupted else 0)
    else:
        accelerator.print(f"finished {place.step} steps, last loss {loss:.4f} nats; checkpoints in {args.ckpt_dir}")


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    place: Place,
    checkpoints: Checkpoints,
    held_out: Interactions | None,
    logger: TimeLogger,
) -> tuple[Place, float | None, bool]:
    """Take the steps from `place` on, saving and evaluating; returns the end, the last loss, and whether by Ctrl-C."""
    args, accelerator, steps = plan.args, checkpoints.accelerator, plan.steps(place)
    sum_over_processes = HostSum(accelerator)
    unread: list[tuple[Work, Tensor]] = []  # losses still on the device, which reading them waits for
    loss, interrupted = None, 0.0
    model.train()
    with Notice() as notice:
        for work in prefetched(plan.work(place), logger.waited):
            before, place = place, work.place
            targets, terminated, interrupted = sum_over_processes(work.targets, notice.terminated, notice.interrupted)
            stopping = terminated + interrupted > 0
            rate = plan.learning_rate(work)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(step_seed(args.seed, place.step, plan.process))
            unread.append((work, train_step(model, optimizer, work.batches, targets, accelerator, args.max_grad_norm)))
            logger.update(len(work.rows), targets, work.batches)

            names = plan.checkpoint_names(before, place, stopping)
            evaluating = plan.evaluation_due(place, steps)
            if names or evaluating or logger.due(place.step) or place.step == steps:
                losses = read_losses(unread)
                loss = losses[-1]
                logger.report(place.step, place.epoch + place.row / plan.histories, sum(losses) / len(losses), rate)
                unread.clear()
            with logger.paused():
                if evaluating:
                    evaluate_and_mark(model, held_out, plan, place, checkpoints, logger, sum_over_processes)
                if names:
                    checkpoints.save(names, model, optimizer, place, loss)
            if stopping:
                break
    return place, loss, interrupted > 0


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[SeqBatch],
    targets: int,
    accelerator: Accelerator,
    max_grad_norm: float | None = None,
) -> Tensor:
    """One step on the mean loss over the `targets` target tokens that all batches of all processes have together.

    Gradients are averaged over processes: each batch's sum is weighed so that the average is that of one large batch.

    Returns:
        The mean loss, () float in nats, still on the device.
    """
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(batches, start=1):
        with contextlib.nullcontext() if number == len(batches) else accelerator.no_sync(model):
            output = model(batch.to(accelerator.device))
            accelerator.backward(output.total * accelerator.num_processes / targets)
        total += output.total.detach()
    if max_grad_norm:
        accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return accelerator.reduce(total, reduction="sum") / targets


def read_losses(unread: list[tuple[Work, Tensor]]) -> list[float]:
    """Losses of some steps in nats.

    Raises:
        InputError: one is not finite; names the step and its histories.
    """
    losses = torch.stack([loss for _, loss in unread]).tolist()
    for (work, _), loss in zip(unread, losses, strict=True):
        if not math.isfinite(loss):
            shown = ", ".join(map(str, work.rows[:5])) + (", …" if len(work.rows) > 5 else "")
            raise InputError(
                f"the loss is {loss} at step {work.place.step} (epoch {work.place.epoch}, histories number {shown}, "
                "counted from 0): training has diverged. Lower --lr or give --max_grad_norm, and go on from the last "
                "checkpoint (--resume), which is kept."
            )
    return losses


def evaluate_and_mark(
    model: nn.Module,
    held_out: Interactions,
    plan: Plan,
    place: Place,
    checkpoints: Checkpoints,
    logger: TimeLogger,
    sum_over_processes: HostSum,
) -> None:
    """Loss on the held-out histories into the log; the weights of the lowest one so far are kept as layer_3_best.pt."""
    model.eval()
    share = (plan.process, plan.processes, sum_over_processes)
    loss = evaluate(model, held_out, plan.args.batch_size, None, *share).loss
    model.train()
    if not math.isfinite(loss):
        raise InputError(
            f"the loss on {plan.args.eval_path} is {loss} after step {place.step}. Lower --lr or give --max_grad_norm, "
            "or mend the embeddings there, and go on from the last checkpoint (--resume), which is kept."
        )
    best = checkpoints.best is None or loss < checkpoints.best["eval_loss"]
    logger.note({"eval_loss": round(loss, 5), "best": best}, place.step)
    if best:
        checkpoints.save_best(f"layer_{plan.args.tf_layer}_best.pt", model, place, loss)


def build(args: argparse.Namespace, data: Interactions) -> tuple[RecGPT, torch.optim.Optimizer]:
    """A model as --seed draws it, and its optimizer."""
    width = data.catalog.embeddings.shape[1]
    check_width(width, data.catalog.source)
    set_seed(args.seed)
    config = RecGPTConfig(args.tf_layer, args.width, heads_of(args), width, dropout=args.dropout)
    try:
        model = compiled(RecGPT(config, args.gradient_checkpointing), args)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(
            f"--width {args.width}, --tf_layer {args.tf_layer}: no such model can be made ({reason}). Give less."
        ) from error
    return model, torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)


def heads_of(args: argparse.Namespace) -> int:
    """Attention heads: as typed, or one per 64 of width."""
    return args.heads or max(1, args.width // HEAD_WIDTH)


def compiled(model: RecGPT, args: argparse.Namespace) -> RecGPT:
    """The model, its blocks compiled with --compile: all but attention, whose groups differ from batch to batch."""
    if args.compile:
        for block in model.gpt2model.h:
            block.compile(dynamic=True)
    return model


def tracker(args: argparse.Namespace, accelerator: Accelerator) -> Callable[[dict[str, float], int], None] | None:
    """What tells --log_with every record; None without it."""
    if not args.log_with:
        return None
    settings = {name: value for name, value in vars(args).items() if isinstance(value, (int, float, str))}
    accelerator.init_trackers("pre_train", settings)
    return accelerator.log


# Checks before the work


def parse() -> tuple[argparse.Namespace, Saved | None]:
    """The command line and the training state to go on from, whose settings stand in for what was not typed.

    Raises:
        InputError: see `find_state` and `parse_again`.
    """
    made = flags()
    args = made.parse_args()
    if args.resume == "":
        raise InputError("--resume was given an empty name. Name a checkpoint, or leave the name out for the last one.")
    saved = find_state(args.ckpt_dir, args.resume) if args.resume else None
    if saved is None:
        return args, None
    known = vars(args).keys() - set(OF_THIS_START)
    unknown = saved.metadata["training"].keys() - known
    if unknown:
        print(f"{saved.path} has settings that this program does not know: {', '.join(sorted(unknown))}; passed over")
    settings = {name: value for name, value in saved.metadata["training"].items() if name in known}
    args, told = parse_again(made, settings, FIXED, saved.path)
    if os.environ.get("RANK", "0") == "0":  # one process tells
        print(f"going on from {saved.path}, step {saved.place.step}{told}")
    return args, saved


def check_flags(args: argparse.Namespace) -> None:
    """Sizes that fit each other, and a place to write to.

    Raises:
        InputError: the width does not divide by the heads, a GPU that is not there, batches shorter than a history, or
            a folder that cannot be written.
    """
    heads = heads_of(args)
    if args.width % heads:
        raise InputError(f"--width {args.width} does not divide by {heads} heads: change --width or --heads.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no GPU here. Leave the flag out to train on the CPU.")
    if args.fsdp and (args.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("--fsdp shares a model out among GPUs, and none is in use here. Give --fsdp False.")
    if args.tokens_per_batch is not None and args.tokens_per_batch < WINDOW * CODES_PER_ITEM:
        raise InputError(
            f"--tokens_per_batch {args.tokens_per_batch} is less than one history may have: give 1024 or more."
        )
    check_writable(Path(args.ckpt_dir) / "any.pt")
    check_writable(args.log_file)


def open_data(args: argparse.Namespace, accelerator: Accelerator) -> tuple[Interactions, dict[str, Any]]:
    """The packed form of --data_path and its header, mapped; one process makes it where there is none that fits."""
    for packs in (accelerator.is_main_process, accelerator.is_local_main_process):  # machines may share a disk, or not
        if packs and not is_current(args.data_path, args.drop_short):
            print(f"packing {args.data_path}, once: a few minutes where there are millions of histories")
            pack(args.data_path, drop_short=args.drop_short)
        accelerator.wait_for_everyone()
    return open_packed(args.data_path)


def load_held_out(args: argparse.Namespace, model: RecGPT, data: Interactions) -> Interactions | None:
    """The histories of --eval_path, cut to the window; None without --eval_every.

    Raises:
        InputError: see `load_eval`; or another encoder or tokenizer than that of the training data.
    """
    if not args.eval_every:
        return None
    held_out = load_eval(args.eval_path, args.drop_short)
    check_fit(Path(args.data_path), model, data.tokenizer, data.encoder, held_out, args.eval_path)
    return held_out._replace(sequences=held_out.sequences.last(model.config.window))


def facts(
    args: argparse.Namespace, config: RecGPTConfig, data: Interactions, accelerator: Accelerator
) -> dict[str, Any]:
    """What every checkpoint of the run tells: configuration, settings, data, tokenizer, versions."""
    known = {"tokenizer": data.tokenizer, "encoder": data.encoder}
    known = {name: value for name, value in known.items() if value}
    if args.eval_every:
        known["held_out"] = [content(Path(args.eval_path) / name) for name in HELD_OUT]
    return {
        "config": {**vars(config), "heads": config.gpt2().n_head},
        "training": {name: value for name, value in vars(args).items() if name not in OF_THIS_START},
        "processes": accelerator.num_processes,
        "data": data_fingerprint(args.data_path),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")},
        **known,
    }


if __name__ == "__main__":
    run(main)
