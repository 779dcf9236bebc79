"""Time a training step, in histories per second, against the published one.

    python benchmarks/train.py --sequences data/test/steam/test.pkl
    python benchmarks/train.py --device cuda --batch_size 1024 --mixed_precision bf16 --compile --no_published

The published step pads every row to 1,024 tokens and computes eager attention and all logits. No time is printed unless
the loss of a batch is the published one to 1e-5, and the gradients of a part of it to 1e-3. Then both take steps in
turn, dropout and AdamW included, on the same histories.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch
from accelerate import Accelerator

import pre_train
from benchmarks import common
from benchmarks.published import PublishedModel, padded_rows, published_loss
from model import RecGPT
from utils.cli import add_settings, positive_int, run
from utils.data import Catalog, Sequences, training_batch
from utils.errors import InputError
from utils.fsq import PUBLISHED
from utils.training.settings import OptimisationSettings

CHECKED = 40  # histories whose loss is compared


def main() -> None:
    """Build, check, time, report."""
    flags = common.benchmark_parser(__doc__)
    common.add_published_flags(flags)
    common.add_model_flags(flags)
    flags.add_argument("--batch_size", type=positive_int, default=40, help="histories per step")
    flags.add_argument("--published_batch_size", type=positive_int, default=8, help="the same, of the published one")
    add_settings(flags, OptimisationSettings, ("mixed_precision", "compile"))
    args = flags.parse_args()
    rng, device, catalog, model, published = common.build(args)
    sequences = common.draw_histories(args, args.batch_size * (args.repeats + 1), rng).last(256)
    check(model, published, sequences.select(np.arange(min(args.batch_size, CHECKED))), catalog, args)

    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=args.mixed_precision)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if args.compile:
        pre_train.compile_blocks(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    published_optimizer = torch.optim.AdamW(published.parameters(), lr=1e-4)
    model.train(), published.train()

    rows = np.arange(len(sequences)).reshape(-1, args.batch_size)  # (repeats + 1, histories of a step)
    published_rows = rows[:, : args.published_batch_size]

    def step(repeat: int) -> None:
        batch = training_batch(sequences.select(rows[repeat]), catalog).to(device)
        pre_train.train_step(model, optimizer, [batch], batch.targets.numel(), accelerator)

    def published_step(repeat: int) -> None:
        codes, embeddings = padded_rows(sequences.select(published_rows[repeat]), catalog, 256)
        total, targets = published_loss(published, codes.to(device), embeddings.to(device))
        (total / targets).backward()
        published_optimizer.step()
        published_optimizer.zero_grad()

    sizes = (args.tf_layer, args.width, PUBLISHED.vocabulary)
    flops = 3 * np.array([common.model_flops(sequences.lengths[step_rows] - 1, *sizes) for step_rows in rows[1:]])
    dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
    counts = (rows.shape[1], published_rows.shape[1])
    result = common.time_in_turn(args, device, "histories", (step, published_step), counts, flops, dtype)
    result["mean_history"] = sequences.lengths.mean()
    common.report("train", args, device, result)


def check(model: RecGPT, published: PublishedModel, sequences: Sequences, catalog: Catalog, args) -> None:
    """Raise InputError unless loss and gradients are those of the published formulation, without dropout."""
    device = next(model.parameters()).device
    model.eval(), published.eval()
    total, targets = 0.0, 0
    with torch.inference_mode():
        ours = model(training_batch(sequences, catalog).to(device)).mean.item()
        for start in range(0, len(sequences), args.published_batch_size):
            rows = np.arange(start, min(start + args.published_batch_size, len(sequences)))
            padded = padded_rows(sequences.select(rows), catalog, 256)
            part = published_loss(published, *(side.to(device) for side in padded))
            total, targets = total + part[0].item(), targets + part[1]
    if not abs(ours - total / targets) <= 1e-5 * total / targets:
        raise InputError(
            f"wrong: the loss is {ours}, the published formulation's {total / targets}; no time is reported"
        )
    print(f"loss {ours:.6f}, published {total / targets:.6f}")

    some = sequences.select(np.arange(min(args.published_batch_size, len(sequences))))
    model(training_batch(some, catalog).to(device)).total.backward()
    published_loss(published, *(side.to(device) for side in padded_rows(some, catalog, 256)))[0].backward()
    for (name, ours), theirs in zip(model.named_parameters(), published.parameters(), strict=True):
        difference = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
        if not difference <= 1e-3:
            raise InputError(f"wrong: the gradient of {name} differs by {difference:.1e}; no time is reported")
    model.zero_grad(), published.zero_grad()


if __name__ == "__main__":
    run(main)
