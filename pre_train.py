"""Pre-train RecGPT on the histories of data/pre_train.

    accelerate launch pre_train.py --batch_size 40 --epoch 5 --tf_layer 3
    python pre_train.py --data_path data/mine --width 256 --max_steps 2000
    torchrun --nproc_per_node 2 pre_train.py --device cpu
    python pre_train.py --config configs/small_cpu.toml --data_path data/my_shop --eval_path data/my_shop/eval
    python pre_train.py --data_share 0.05 --ckpt_dir ckpt/twentieth
    python pre_train.py --resume
    python pre_train.py --init_from ckpt/recgpt_layer_3_weight.pt --data_path data/my_shop --ckpt_dir ckpt/my_shop
    python pre_train.py --refit_of ckpt/my_shop/layer_3_best.pt --data_path data/my_shop/whole --ckpt_dir ckpt/whole

Checkpoints go to --ckpt_dir: at every tenth of the first epoch, every 5,000 steps, at the end of each epoch, at
--max_steps, at the end of --minutes or --patience, on SIGTERM and on Ctrl-C. --resume goes on from the one written
last, with its settings unless others are typed; on the CPU the weights come out as if nothing had stopped the run, bit
by bit.

--config takes settings from a file; every checkpoint has one beside it, with which its run can be repeated.

The loop is in `train`, one step in `train_step`; the flags are in utils/training/settings.py.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import contextlib
import importlib.metadata
import math
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from decoder import check_width
from eval import EvalLoss, evaluate, evaluate_ranking
from model import Items, RecGPT, RecGPTConfig, has_tied_embeddings, read_config
from utils.checkpoint import CODES, ITEMS, UNSAID, fill_module, load_state, read_metadata
from utils.cli import INTERRUPTED, add_settings, parse_resumed, parser, run
from utils.config import read_settings
from utils.data import WINDOW, SeqBatch
from utils.datasets import (
    HELD_OUT,
    LAST,
    SEEN,
    WHOLE,
    Interactions,
    Origin,
    check_fit,
    has_last_targets,
    is_id,
    load_eval,
)
from utils.errors import InputError, reason, shown
from utils.files import check_writable, content
from utils.fsq import PUBLISHED, Codebook, code_keys
from utils.packed import data_fingerprint, entropy, guessing_loss, is_current, item_counts, open_packed, pack
from utils.scores import repeats
from utils.TimeLogger import TimeLogger
from utils.training.batches import prefetched
from utils.training.origins import check_kept, check_refit, noted_path, targets_seen, weights_content, whole_lists_seen
from utils.training.plan import Plan, Progress, Step
from utils.training.processes import StopSignal, check_same_start, host_all_reduce, start_accelerator, watch_processes
from utils.training.settings import FIXED, GROUPS, LOSS, NDCG, OF_ONE_DATA, Settings
from utils.training.state import Checkpoints, SavedState, find_state, first_process, step_seed
from utils.Trie import Trie
from utils.util import set_seed

CTRL_C, SIGTERM, MINUTES, PATIENCE = "Ctrl-C", "SIGTERM", "--minutes", "--patience"  # what ends a run before its plan


class Initial(NamedTuple):
    """The weights that --init_from names."""

    state: dict[str, Tensor]
    config: RecGPTConfig
    origin: Origin  # what they were trained on
    metadata: dict[str, Any]  # of the JSON beside them
    note: dict[str, Any]  # what checkpoints of the run say of them


class Outcome(NamedTuple):
    """How training has ended."""

    progress: Progress
    loss: float | None  # of the last step, in nats; None if no step was taken
    ended_by: str = ""  # empty at the end of the plan


@watch_processes()
def main() -> None:
    """Parse, build or resume, train, report."""
    settings, saved = find_resumed(settings_of(parse()))
    settings, refit = (settings, None) if saved or settings.refit_of is None else read_refit(settings.refit_of)
    settings, initial = (settings, None) if saved or settings.init_from is None else read_initial(settings)
    check_settings(settings)
    accelerator = start_accelerator(settings)
    data, header = open_data(settings, accelerator)
    if refit:
        check_refit(settings, data, accelerator.num_processes)
    model, optimizer = build(settings, data, initial)
    evaluation = make_evaluation(settings, accelerator, load_held_out(settings, model, data), data)
    flops, window = model.flops_per_token(), model.config.window
    origins = {"init_from": initial and initial.note, "refit_of": refit}
    if saved:
        origins = {name: saved.metadata.get(name) for name in origins}
    config = replace(settings, **{name: noted_path(note) for name, note in origins.items()}).to_config()
    earlier = saved or initial
    origins[WHOLE] = whole_lists_seen(settings, earlier.metadata if earlier else {})
    metadata = run_metadata(settings, model.config, data, accelerator, origins)
    plan = Plan(data, settings, window, accelerator.process_index, accelerator.num_processes, accelerator.device)
    checkpoints = Checkpoints(settings.ckpt_dir, settings.keep, accelerator, metadata, config)
    check_same_start(accelerator, saved.progress if saved else Progress(), metadata)
    model, optimizer = accelerator.prepare(model, optimizer)
    progress = checkpoints.resume(saved, model, optimizer) if saved else checkpoints.begin()
    steps = plan.total_steps(progress)
    guess_by, guess = guessing(settings, plan, header)
    at_most = "at most " if settings.minutes or settings.patience else ""
    of_all = f" of {len(data.sequences)}" if plan.histories < len(data.sequences) else ""
    accelerator.print(
        f"{plan.histories}{of_all} histories, {plan.lengths.sum()} interactions, {len(data.catalog)} items; "
        f"{flops / 6e6:.1f} M parameters besides embeddings; {accelerator.num_processes} process(es); "
        f"{at_most}{steps} steps, {progress.step} of them taken; "
        f"guessing from {guess_by} has a loss of {guess:.3f} nats"
    )
    log_file = Path(settings.log_file) if accelerator.is_main_process else None
    with TimeLogger(steps, progress.step, log_file, flops=flops, track=tracker(settings, accelerator)) as logger:
        begun = {"start": metadata["training"], "processes": accelerator.num_processes, "histories": plan.histories}
        logger.log({**begun, "guessing_by": guess_by, "guessing_loss": round(guess, 5)}, progress.step)
        outcome = train(settings, accelerator, plan, progress, model, optimizer, checkpoints, evaluation, logger)
    accelerator.end_training()
    accelerator.print(report(settings, outcome, steps))
    best = Path(settings.ckpt_dir) / best_name(settings)
    if checkpoints.best and best.is_file():
        found = "lowest loss on {}: {eval_loss:.4f} nats, after step {step}"
        if settings.best_by == NDCG:
            found = "highest NDCG@10 on {}: {eval_ndcg:.4f}, after step {step}"
        accelerator.print(found.format(settings.eval_path, **checkpoints.best) + f"\nbest: {best}")
    if outcome.ended_by == CTRL_C and outcome.progress.step < steps:
        sys.exit(INTERRUPTED)


def guessing(settings: Settings, plan: Plan, header: dict[str, Any]) -> tuple[str, float]:
    """Of what frequencies, among the users trained on, a guess is that needs no model; its nats per target token."""
    data, users = plan.data, plan.users if plan.histories < len(plan.data.sequences) else None
    if settings.predict == ITEMS:
        of_items = entropy(item_counts(data.sequences, data.catalog, users))
        return "item frequencies", of_items / data.catalog.codebook.per_item
    known = header["guessing_loss"] if users is None else guessing_loss(data.sequences, data.catalog, users)
    return "code frequencies", known


def report(settings: Settings, outcome: Outcome, steps: int) -> str:
    """Say how a run has ended: nothing to do, stopped by a signal, or finished."""
    taken, loss, ended_by = outcome.progress.step, outcome.loss, outcome.ended_by
    in_vain = f" after {settings.patience} evaluations in a row without a better one" if ended_by == PATIENCE else ""
    if loss is None:
        return f"nothing to do: {taken} steps were taken{in_vain and f', and training ended{in_vain}'}"
    if ended_by in (CTRL_C, SIGTERM) and taken < steps:
        return f"told to stop ({ended_by}) after step {taken} of {steps}: go on with --resume"
    after = f" after --minutes {settings.minutes:g}" if ended_by == MINUTES else in_vain
    return f"finished {taken} steps{after}, last loss {loss:.4f} nats; checkpoints in {settings.ckpt_dir}"


# Training


def train(
    settings: Settings,
    accelerator: Accelerator,
    plan: Plan,
    progress: Progress,
    model: nn.Module,
    optimizer: Optimizer,
    checkpoints: Checkpoints,
    evaluation: Callable[[nn.Module], EvalLoss] | None,
    logger: TimeLogger,
) -> Outcome:
    """Take the steps of the plan from `progress` on, and log, evaluate and save where that is due."""
    if out_of_patience(settings, checkpoints):
        return Outcome(progress, None, PATIENCE)
    sum_over_processes = host_all_reduce(accelerator)
    deadline = time.monotonic() + 60 * (settings.minutes or math.inf)
    unread: list[tuple[Step, int, Tensor]] = []  # targets, and losses still on the device: reading them waits for it
    loss, ended_by = None, ""

    def evaluate_here() -> None:
        model.eval()
        found = evaluation(model)
        model.train()
        keep_best(settings, model, progress, found, checkpoints, logger)

    model.train()
    with StopSignal() as signals:
        if settings.init_from and evaluation and not progress.step:  # the weights may be best as they are
            with logger.paused():
                evaluate_here()
        for step in prefetched(plan.steps(progress), logger.waited):
            before, progress = progress, step.progress
            late = time.monotonic() >= deadline
            targets, *stops = sum_over_processes(step.targets, signals.interrupted, signals.terminated, late)
            ended_by = first_told((CTRL_C, SIGTERM, MINUTES), stops)
            lr = plan.learning_rate(step)
            set_learning_rate(optimizer, lr)
            torch.manual_seed(step_seed(settings.seed, progress.step, accelerator.process_index))
            step_loss = train_step(model, optimizer, step.batches, targets, accelerator, settings.max_grad_norm)
            unread.append((step, targets, step_loss))
            logger.update(len(step.rows), targets, step.batches)

            names = plan.checkpoint_names(before, progress, bool(ended_by))
            evaluating = plan.evaluation_due(progress, last=ended_by == MINUTES)
            if names or evaluating or logger.due(progress.step):
                losses = read_losses(unread)
                loss = losses[-1]
                epochs = progress.epoch + progress.row / plan.histories
                mean = np.average(losses, weights=[tokens for _, tokens, _ in unread])
                logger.report(progress.step, epochs, float(mean), lr)
                unread.clear()
            with logger.paused():
                if evaluating:
                    evaluate_here()
                    if not ended_by and out_of_patience(settings, checkpoints):
                        ended_by = PATIENCE
                        names = plan.checkpoint_names(before, progress, stopping=True)
                if names:
                    checkpoints.save(names, model, optimizer, progress, loss)
            if ended_by:
                break
    return Outcome(progress, loss, ended_by)


def make_evaluation(
    settings: Settings, accelerator: Accelerator, held_out: Interactions | None, data: Interactions
) -> Callable[[nn.Module], EvalLoss] | None:
    """The function that evaluates a model on the held-out histories as --best_by says; None without them.

    For NDCG their last items are ranked among all items of `data`, those that are trained on.
    """
    if held_out is None:
        return None
    among = (accelerator.process_index, accelerator.num_processes, host_all_reduce(accelerator))
    if settings.best_by == LOSS:
        return lambda model: evaluate(model, held_out, settings.batch_size, None, *among)
    catalog = Trie(data.catalog.codes, codebook=data.catalog.codebook).to(accelerator.device)
    arguments = (held_out, catalog, settings.batch_size, *among, settings.exclude_history)
    return lambda model: evaluate_ranking(accelerator.unwrap_model(model), *arguments)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give all parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def first_told(reasons: tuple[str, ...], told: list[float]) -> str:
    """The first reason to stop that any process has been told, or an empty string."""
    return next((reason for reason, processes in zip(reasons, told, strict=True) if processes), "")


def out_of_patience(settings: Settings, checkpoints: Checkpoints) -> bool:
    """Whether --patience evaluations in a row have found nothing better."""
    return settings.patience is not None and checkpoints.evaluations_since_best() >= settings.patience


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    batches: list[SeqBatch],
    targets: int,
    accelerator: Accelerator,
    max_grad_norm: float | None = None,
) -> Tensor:
    """Take one optimizer step on the mean loss over the `targets` target tokens of all batches of all processes.

    Losses are summed, and accelerate averages gradients over the processes. Scaling by processes / targets makes them
    the gradients of one large batch, however it is divided.

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


def read_losses(unread: list[tuple[Step, int, Tensor]]) -> list[float]:
    """Read the losses of steps from the device, in nats; InputError naming the first step whose loss is not finite."""
    losses = torch.stack([loss for _, _, loss in unread]).tolist()
    for (step, _, _), loss in zip(unread, losses, strict=True):
        if not math.isfinite(loss):
            shown = ", ".join(map(str, step.rows[:5])) + (", …" if len(step.rows) > 5 else "")
            raise InputError(
                f"the loss is {loss} at step {step.progress.step} (epoch {step.progress.epoch}, histories number "
                f"{shown}, counted from 0): training has diverged. Lower --lr or give --max_grad_norm, and go on from "
                "the last checkpoint (--resume), which is kept."
            )
    return losses


def keep_best(
    settings: Settings,
    model: nn.Module,
    progress: Progress,
    found: EvalLoss,
    checkpoints: Checkpoints,
    logger: TimeLogger,
) -> None:
    """Log what was found on the held-out histories; save the weights as layer_3_best.pt if they are the best so far.

    InputError if the loss is not finite.
    """
    loss = found.loss
    if not math.isfinite(loss):
        raise InputError(
            f"the loss on {settings.eval_path} is {loss} after step {progress.step}. Lower --lr or give "
            "--max_grad_norm, or mend the embeddings there, and go on from the last checkpoint (--resume), which is "
            "kept."
        )
    values = {"eval_loss": loss} if found.ndcg is None else {"eval_loss": loss, "eval_ndcg": found.ndcg}
    best = checkpoints.best is None or is_better(values, checkpoints.best)
    logger.log({**{name: round(value, 5) for name, value in values.items()}, "best": best}, progress.step)
    if best:
        checkpoints.save_best(best_name(settings), model, progress, values)
    else:
        checkpoints.count_evaluation()


def is_better(values: dict[str, float], best: dict[str, Any]) -> bool:
    """Whether an evaluation found a higher NDCG than the best so far or, where that is not measured, a lower loss."""
    if "eval_ndcg" in values:
        return values["eval_ndcg"] > best["eval_ndcg"]
    return values["eval_loss"] < best["eval_loss"]


def best_name(settings: Settings) -> str:
    """Name of the file with the best weights by the held-out histories."""
    return f"layer_{settings.tf_layer}_best.pt"


# The command line


def flags() -> argparse.ArgumentParser:
    """The parser of the command line, a flag for each of `Settings`."""
    made = parser(__doc__)
    made.add_argument("--config", metavar="FILE", help="TOML with settings by name of flag; flags that are typed win")
    for name, group in GROUPS.items():
        add_settings(made.add_argument_group(name), group)
    return made


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that a parsed command line gives."""
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


def parse(**defaults: Any) -> argparse.Namespace:
    """Parse the command line; what it leaves out comes from the file of --config, and then from `defaults` by flag."""
    made = flags()
    made.set_defaults(**defaults)
    args = made.parse_args()
    if args.config is None:
        return args
    made.set_defaults(**read_settings(args.config, Settings))
    return made.parse_args()


def find_resumed(settings: Settings) -> tuple[Settings, SavedState | None]:
    """Find the training state to resume from, if any; its settings stand in for those that were not typed."""
    if settings.resume == "":
        raise InputError("--resume was given an empty name. Name a checkpoint, or leave the name out for the last one.")
    saved = find_state(settings.ckpt_dir, settings.resume) if settings.resume else None
    if saved is None:
        return settings, None
    earlier = known_settings(saved.metadata["training"], saved.path)
    earlier = {name: getattr(Settings(), name) for name in FIXED} | earlier  # older states do not have all
    args, changed = parse_resumed(parse, earlier, FIXED, saved.path)
    if first_process():
        print(f"going on from {saved.path}, step {saved.progress.step}{changed}")
        if settings.init_from is not None:
            print(f"--init_from {settings.init_from} is not read: the run has weights of its own")
    return settings_of(args), saved


def known_settings(earlier: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """The settings of an earlier run that this program has; it says which it passes over."""
    unknown = earlier.keys() - Settings().to_resume().keys()
    if unknown:
        print(f"{source} has settings that this program does not know: {', '.join(sorted(unknown))}; passed over")
    return {name: value for name, value in earlier.items() if name not in unknown}


def read_refit(path: str) -> tuple[Settings, dict[str, Any]]:
    """Read how the checkpoint of --refit_of was trained; returns these settings where none are typed, and a note.

    Early stopping has chosen the number of its steps on targets that it must not train on. The same number of steps on
    whole histories gives weights that have seen these targets, too.

    Raises:
        InputError: no JSON beside the checkpoint, a size typed otherwise, or other weights to start from than it had.
    """
    metadata = read_metadata(path)
    noted = metadata.get("training"), metadata.get("config", {}), metadata.get("init_from", {})
    if not all(isinstance(one, dict) for one in noted) or not is_id(metadata.get("step")) or metadata["step"] < 1:
        raise InputError(
            f"--refit_of {path}: the JSON beside it does not say how it was trained, or for no step. Use it as it is."
        )
    config, training = {**UNSAID, **metadata.get("config", {})}, metadata["training"]
    for name, flag, value in (
        ("predicts", "predict", training.get("predict", CODES)),
        ("attention", "attention", training.get("attention", UNSAID["attention"])),
        ("auxiliary", "no_auxiliary", not training.get("no_auxiliary", False)),
    ):
        if config[name] != value:
            raise InputError(
                f"--refit_of {path}: by the JSON beside it, {name} of the model is {shown(config[name])}, and its "
                f"training had --{flag} {shown(training.get(flag))}. Restore it."
            )
    earlier = known_settings(metadata["training"], path)
    earlier = {name: value for name, value in earlier.items() if name not in OF_ONE_DATA}
    args, _ = parse_resumed(parse, earlier | {"max_steps": metadata["step"]}, FIXED, Path(path), "--refit_of")
    settings = settings_of(args)
    check_kept(settings, "--refit_of", path)
    started = metadata.get("init_from", {}).get("content")
    if started != (weights_content(settings.init_from) if settings.init_from else None):
        name = metadata.get("init_from", {}).get("name", "drawn weights")
        raise InputError(f"--refit_of {path} was started from {name}: give the same --init_from, or none as it had.")
    note = {"name": path, "content": weights_content(path), "step": metadata["step"]}
    return settings, note


def read_initial(settings: Settings) -> tuple[Settings, Initial]:
    """Read the weights of --init_from; returns the settings with their sizes, and the weights.

    With --predict items those of a model that predicts codes are taken, too, without its head.

    Raises:
        InputError: not the weights of a RecGPT model, in --ckpt_dir, or a size that is typed contradicts them.
    """
    path = settings.init_from
    check_kept(settings, "--init_from", path)
    state, metadata = load_state(path), read_metadata(path)
    config = read_config(state, metadata, path)
    if config.window != WINDOW:
        raise InputError(f"{path} has a window of {config.window} items; training is for {WINDOW}. Give other weights.")
    sizes = {"tf_layer": config.layers, "width": config.width, "heads": config.heads}
    sizes |= {"attention": config.attention, "no_auxiliary": not config.auxiliary}
    if (config.predicts, settings.predict) == (CODES, ITEMS):
        config = replace(config, predicts=ITEMS)
        for name in [name for name in state if name.startswith("pred_head.")]:
            del state[name]
    sizes |= {"predict": config.predicts, "tie_embeddings": has_tied_embeddings(state)}
    parse_resumed(parse, sizes, tuple(sizes), Path(path), "--init_from")
    known = metadata.get("encoder"), metadata.get("tokenizer"), config.codebook
    origin = Origin(path, config.embedding_width, *known)
    note = {"name": Path(path).name, "path": path, "content": weights_content(path)}
    judged_by = Path(settings.eval_path) / HELD_OUT[0]
    if SEEN in metadata and settings.eval_every and judged_by.is_file() and metadata[SEEN] == content(judged_by):
        raise InputError(
            f"--init_from {path} was trained on the targets of {settings.eval_path}, which would judge it. Start from "
            "weights that have not seen them, or leave out --eval_every."
        )
    return replace(settings, **sizes), Initial(state, config, origin, metadata, note)


# What a run is built of


def check_settings(settings: Settings) -> None:
    """Check that sizes fit each other, and that the files can be written, before anything else is done.

    Raises:
        InputError: the width does not divide by the heads, a GPU that is not there, batches shorter than a history,
            patience without evaluations, or a folder that cannot be written.
    """
    heads = settings.heads or RecGPTConfig(width=settings.width).attention_heads
    if settings.width % heads:
        raise InputError(f"--width {settings.width} does not divide by {heads} heads: change --width or --heads.")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no GPU here. Leave the flag out to train on the CPU.")
    if settings.fsdp and (settings.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("--fsdp shares a model out among GPUs, and none is in use here. Give --fsdp False.")
    check_tokens(settings, PUBLISHED)
    if settings.best_by == NDCG and settings.fsdp:
        raise InputError("--best_by ndcg ranks with whole models, and --fsdp has none. Leave one of them out.")
    check_predicted(settings)
    if settings.patience and not settings.eval_every:
        raise InputError("--patience counts evaluations, and there are none. Give --eval_every, too.")
    check_writable(Path(settings.ckpt_dir) / "any.pt")
    check_writable(settings.log_file)


def check_tokens(settings: Settings, codebook: Codebook) -> None:
    """InputError if a history may have more tokens than --tokens_per_batch."""
    tokens, most = settings.tokens_per_batch, WINDOW * codebook.per_item
    if tokens is not None and tokens < most:
        raise InputError(f"--tokens_per_batch {tokens} is less than one history may have: give {most} or more.")


def check_predicted(settings: Settings) -> None:
    """InputError if what is predicted, and among what, does not fit how the best weights are chosen."""
    if settings.predict == ITEMS and settings.tie_embeddings:
        raise InputError("--predict items has no table of its own in the head to tie. Leave --tie_embeddings out.")
    if settings.predict == ITEMS and settings.eval_every and settings.best_by != NDCG:
        raise InputError("--predict items scores the items of one catalog only. Give --best_by ndcg, too.")
    if settings.exclude_history and settings.best_by != NDCG:
        raise InputError("--exclude_history says which items are ranked, and none are. Give --best_by ndcg, too.")


def open_data(settings: Settings, accelerator: Accelerator) -> tuple[Interactions, dict[str, Any]]:
    """Map the packed form of --data_path, and read its header; one process makes it where there is none that fits."""
    for packs in (accelerator.is_main_process, accelerator.is_local_main_process):  # machines may share a disk, or not
        if packs and not is_current(settings.data_path, settings.drop_short):
            print(f"packing {settings.data_path}, once: a few minutes where there are millions of histories")
            pack(settings.data_path, drop_short=settings.drop_short)
        accelerator.wait_for_everyone()
    return open_packed(settings.data_path)


def build(settings: Settings, data: Interactions, initial: Initial | None = None) -> tuple[RecGPT, Optimizer]:
    """Make a model with weights drawn by --seed, or the initial ones, and its optimizer.

    Raises:
        InputError: sizes that no model can have, or initial weights of other codes or embeddings than the data's.
    """
    width, codebook = data.catalog.embeddings.shape[1], data.catalog.codebook
    check_width(width, data.catalog.source, codebook)
    check_tokens(settings, codebook)
    if initial:
        check_fit(initial.origin, data.origin._replace(name=settings.data_path))
    set_seed(settings.seed)
    numbers = settings.tf_layer, settings.width, settings.heads or 0, width
    config = RecGPTConfig(
        *numbers,
        dropout=settings.dropout,
        predicts=settings.predict,
        attention=settings.attention,
        auxiliary=not settings.no_auxiliary,
        levels=codebook.levels,
        codes_per_item=codebook.per_item,
    )
    try:
        model = RecGPT(config, settings.gradient_checkpointing)
    except RuntimeError as error:
        sizes = f"--width {settings.width}, --tf_layer {settings.tf_layer}"
        raise InputError(f"{sizes}: no such model can be made ({reason(error)}). Give less.") from error
    if initial:
        fill_module(model, initial.state, initial.origin.name)
    if settings.predict == ITEMS:
        model.items = Items(data.catalog)
    if settings.tie_embeddings:
        model.tie_embeddings()
    if settings.compile:
        compile_blocks(model)
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True)
    return model, optimizer


def compile_blocks(model: RecGPT) -> None:
    """Have torch compile the transformer blocks: all but attention, whose groups differ from batch to batch."""
    for block in model.gpt2model.h:
        block.compile(dynamic=True)


def load_held_out(settings: Settings, model: RecGPT, data: Interactions) -> Interactions | None:
    """Load the histories of --eval_path, cut to the window; None without --eval_every.

    InputError if their codes or embeddings were not made as those of the training data, or training sees the targets.
    """
    if not settings.eval_every:
        return None
    held_out = load_eval(settings.eval_path, settings.drop_short)
    check_fit(data.origin._replace(name=settings.data_path), held_out.origin)
    if targets_seen(settings) == content(Path(settings.eval_path) / HELD_OUT[0]):
        raise InputError(
            f"{settings.data_path} has the targets of {settings.eval_path}: training would see what it is judged by. "
            "Train on the folder above, or leave out --eval_every."
        )
    if settings.best_by == NDCG and not held_out.last_only:
        raise InputError(
            f"--best_by ndcg ranks last items that training has not seen, and {settings.eval_path} does not say that "
            "it has such. Make both folders with make_pre_train.py, or leave the flag out."
        )
    if settings.predict == ITEMS:
        held_out = in_numbers_of(held_out, data, settings)
    if settings.best_by == NDCG and not np.isin(*(code_keys(each.catalog.codes) for each in (held_out, data))).all():
        raise InputError(
            f"--best_by ndcg ranks among the items of {settings.data_path}, and {settings.eval_path} has others. Give "
            "the folder eval of the same data, or leave the flag out."
        )
    sequences = held_out.sequences
    if settings.exclude_history:
        histories, targets = sequences.split_targets()
        sequences = sequences.select(np.flatnonzero(~repeats(histories, targets)))
        if not len(sequences):
            raise InputError(f"--exclude_history: every last item of {settings.eval_path} is in its own history.")
    return held_out._replace(sequences=sequences.last(model.config.window))


def in_numbers_of(held_out: Interactions, data: Interactions, settings: Settings) -> Interactions:
    """The held-out histories with the items of the training data; InputError if they have others under their ids.

    Embeddings may differ by as much as half precision does.
    """
    ids, rows = held_out.ids, np.arange(len(held_out.catalog))  # ids ascend
    known = ids[0] >= 0 and ids[-1] < len(data.catalog)
    same_codes = known and np.array_equal(held_out.catalog.codes, data.catalog.codes[ids])
    if not same_codes or not np.allclose(held_out.catalog.embed(rows), data.catalog.embed(ids), rtol=0.01, atol=0.01):
        raise InputError(
            f"--predict items ranks the items of {settings.data_path}, and {settings.eval_path} has others. Give the "
            "folder eval of the same data."
        )
    sequences = replace(held_out.sequences, items=ids[held_out.sequences.items])
    return held_out._replace(sequences=sequences, catalog=data.catalog)


def tracker(settings: Settings, accelerator: Accelerator) -> Callable[[dict[str, float], int], None] | None:
    """Start the tracker of --log_with; returns the function that logs a record to it, or None without the flag."""
    if not settings.log_with:
        return None
    plain = {name: value for name, value in vars(settings).items() if isinstance(value, (int, float, str))}
    accelerator.init_trackers("pre_train", plain)
    return accelerator.log


def run_metadata(
    settings: Settings,
    config: RecGPTConfig,
    data: Interactions,
    accelerator: Accelerator,
    origins: dict[str, Any],
) -> dict[str, Any]:
    """What the JSON of every checkpoint of the run says: configuration, settings, data, tokenizer, versions.

    `origins` are notes of the weights that the run was started from, of those that it repeats, and of the lists that
    it sees to their end, if there are any.
    """
    held_out = None
    if settings.eval_every:
        held_out = [content(Path(settings.eval_path) / name) for name in HELD_OUT]
        held_out += [LAST] if has_last_targets(settings.eval_path) else []
        held_out += [settings.best_by] if settings.best_by != LOSS else []
        held_out += ["exclude_history"] if settings.exclude_history else []
    origins = origins | {"tokenizer": data.tokenizer, "encoder": data.encoder, "held_out": held_out}
    origins[SEEN] = targets_seen(settings)
    return {
        "config": config.noted(),
        "training": settings.to_resume(),
        "processes": accelerator.num_processes,
        "data": data_fingerprint(settings.data_path),
        "histories": len(data.sequences),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")},
        **{name: value for name, value in origins.items() if value},
    }


if __name__ == "__main__":
    run(main)
