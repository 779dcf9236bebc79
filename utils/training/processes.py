"""The processes of a run, started through accelerate: one on the CPU or one per GPU, on one machine or many."""

import contextlib
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, gather_object

from utils.errors import InputError
from utils.training.plan import Progress
from utils.training.settings import Settings

SECOND_PRESS = 1.0  # seconds between two presses of Ctrl-C that are not the same one
PATHS = ("data_path", "eval_path", "log_file")  # settings that machines may differ in


def start_accelerator(settings: Settings) -> Accelerator:
    """Make the accelerator of this process; print a line where it trains on the CPU.

    Raises:
        InputError: the launcher started another number of processes than accelerate found, or a tracker is missing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no supported trackers")  # an error below
        accelerator = Accelerator(
            cpu=settings.device == "cpu",
            mixed_precision=settings.mixed_precision,
            fsdp_plugin=fsdp_plugin() if settings.fsdp else None,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
            log_with=settings.log_with,
            project_dir=Path(settings.log_file).parent,
        )
    if settings.log_with and not accelerator.log_with:
        raise InputError(f"--log_with {settings.log_with}: it is not installed: pip install {settings.log_with}")
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise InputError(
            f"{started} processes were started (WORLD_SIZE), accelerate found {accelerator.num_processes}: each would "
            "train on everything. On the CPU: torchrun --nproc_per_node N pre_train.py --device cpu"
        )
    if accelerator.device.type == "cpu":
        accelerator.print("no GPU in use: training on the CPU")
    return accelerator


def fsdp_plugin() -> FullyShardedDataParallelPlugin:
    """How --fsdp shards: every GPU holds a part of the weights, gradients and moments, and gathers them by block."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["GPT2Block"]
    )


@contextlib.contextmanager
def watch_processes() -> Iterator[None]:
    """Raise InputError in place of torch's many errors, wherever this process is, when another one has ended."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise InputError(
            "another process has stopped: its message, or the launcher's, tells why. Go on with --resume."
        ) from error


def check_same_start(accelerator: Accelerator, progress: Progress, run_metadata: dict[str, Any]) -> None:
    """Raise InputError unless all processes, on all machines, have the same settings and data and the same first step.

    Machines that do not share --ckpt_dir find no state, or an older one, on all but the first.
    """
    own = {f"--{name}": value for name, value in run_metadata["training"].items() if name not in PATHS}
    own |= {name: run_metadata.get(name) for name in ("data", "tokenizer", "held_out", "init_from")}
    if isinstance(own["init_from"], dict):
        own["init_from"] = {name: value for name, value in own["init_from"].items() if name != "path"}
    own |= {f"{name} to begin at": value for name, value in progress._asdict().items()}
    for number, other in enumerate(gather_object([own])):
        for name, value in own.items():
            if other[name] != value:
                raise InputError(
                    f"{name} is {value} in process {accelerator.process_index} and {other[name]} in process {number}. "
                    "Type the same command on every machine, with the same data, and share --ckpt_dir among them. "
                    "Where the first has passed over a damaged state, name one: --resume PATH."
                )


def host_all_reduce(accelerator: Accelerator) -> Callable[..., list[float]]:
    """Make a function that sums each of its arguments, small numbers, over all processes.

    The sums go from processor to processor, so that no GPU is waited for. Whole numbers stay exact up to 2^53.
    """
    if accelerator.num_processes == 1:
        return lambda *numbers: list(numbers)
    group = dist.group.WORLD if accelerator.device.type == "cpu" else dist.new_group(backend="gloo")

    def sum_over_processes(*numbers: float) -> list[float]:
        summed = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(summed, group=group)
        return summed.tolist()

    return sum_over_processes


class StopSignal:
    """Record SIGTERM, which a cluster sends when time is up, and Ctrl-C, so that training stops after its step.

    Ctrl-C pressed again ends the process at once if it comes a second or more after the first: sooner it may be the
    same one, which torchrun passes on to processes that have got it from the terminal.
    """

    def __init__(self):
        self.terminated, self.interrupted, self.since = False, False, math.inf

    def __enter__(self) -> "StopSignal":
        handled = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self._record) for number in handled}
        return self

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self.terminated = True
        elif time.monotonic() - self.since > SECOND_PRESS:
            self.before[number](number, frame)
        else:
            self.interrupted, self.since = True, min(self.since, time.monotonic())

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
