"""Several processes through accelerate: one on the CPU, one per GPU, on one machine or many."""

import argparse
import contextlib
import math
import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, gather_object

from utils.errors import InputError
from utils.training.plan import Place

AGAIN = 1.0  # seconds
PATHS = ("data_path", "eval_path", "log_file")  # settings that machines may differ in


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """The accelerator of this process, by the flags of pre_train.py; on the CPU it says so.

    Raises:
        InputError: the launcher started another number of processes than accelerate found, or a tracker is missing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no supported trackers")  # an error below
        accelerator = Accelerator(
            cpu=args.device == "cpu",
            mixed_precision=args.mixed_precision,
            fsdp_plugin=sharding() if args.fsdp else None,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            log_with=args.log_with,
            project_dir=Path(args.log_file).parent,
        )
    if args.log_with and not accelerator.log_with:
        raise InputError(f"--log_with {args.log_with}: it is not installed: pip install {args.log_with}")
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise InputError(
            f"{started} processes were started (WORLD_SIZE), accelerate found {accelerator.num_processes}: each would "
            "train on everything. On the CPU: torchrun --nproc_per_node N pre_train.py --device cpu"
        )
    if accelerator.device.type == "cpu":
        accelerator.print("no GPU in use: training on the CPU")
    return accelerator


def sharding() -> FullyShardedDataParallelPlugin:
    """For --fsdp: every GPU holds a part of the weights, gradients and moments, and gathers them block by block."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["GPT2Block"]
    )


@contextlib.contextmanager
def lost_processes_told() -> Iterator[None]:
    """InputError in place of what torch raises, wherever this process happens to be, when another one has ended."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise InputError(
            "another process has stopped: its message, or the launcher's, tells why. Go on with --resume."
        ) from error


def check_same_start(accelerator: Accelerator, place: Place, facts: dict[str, Any]) -> None:
    """InputError unless every process, on whichever machine, was given the same work and begins at the same place.

    Machines that do not share --ckpt_dir find no state, or an older one, on all but the first.
    """
    own = {f"--{name}": value for name, value in facts["training"].items() if name not in PATHS}
    own |= {name: facts.get(name) for name in ("data", "tokenizer", "held_out")}
    own |= {f"{name} to begin at": value for name, value in place._asdict().items()}
    for number, other in enumerate(gather_object([own])):
        for name, value in own.items():
            if other[name] != value:
                raise InputError(
                    f"{name} is {value} in process {accelerator.process_index} and {other[name]} in process {number}. "
                    "Type the same command on every machine, with the same data, and share --ckpt_dir among them. "
                    "Where the first has passed over a damaged state, name one: --resume PATH."
                )


class HostSum:
    """Sums small numbers over all processes without a word to the GPU, so that it is never waited for."""

    def __init__(self, accelerator: Accelerator):
        self.group = None
        if accelerator.num_processes > 1:
            self.group = dist.group.WORLD if accelerator.device.type == "cpu" else dist.new_group(backend="gloo")

    def __call__(self, *numbers: float) -> list[float]:
        """The sum of each number over the processes; whole numbers stay exact up to 2^53."""
        if self.group is None:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(summed, group=self.group)
        return summed.tolist()


class Notice:
    """SIGTERM, by which a cluster tells that time is up, or Ctrl-C: noted here, and heeded at the end of a step.

    Ctrl-C pressed again ends the process at once, a second or more after the first: sooner it may be the same, which
    torchrun passes on to processes that the terminal has told already.
    """

    def __init__(self):
        self.terminated, self.interrupted, self.since = False, False, math.inf

    def __enter__(self) -> "Notice":
        heeded = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self.terminated = True
        elif time.monotonic() - self.since > AGAIN:
            self.before[number](number, frame)
        else:
            self.interrupted, self.since = True, min(self.since, time.monotonic())

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
