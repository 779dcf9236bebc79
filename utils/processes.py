"""Several processes that share the work of a script, as torchrun starts them, for example on several GPUs."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch.distributed as dist

from utils.errors import InputError


class Stopped(InputError):  # noqa: N818 - what it says, as DiskError does
    """Another of the processes that share the work has stopped; what this one has done is not at fault."""


class Place(NamedTuple):
    """The place of this process among all that share the work."""

    rank: int
    count: int

    def gathered(self, value: Any) -> list[Any] | None:
        """The values of all processes by rank, in the first one; None in the others. Waits for all."""
        if self.count == 1:
            return [value]
        values = [None] * self.count if self.rank == 0 else None
        with _watched():
            dist.gather_object(value, values)
        return values

    def first_alone(self, make: Callable[[], Any]) -> Any:
        """What `make` returns, in every process; the others make it after the first, and find the files it wrote."""
        if self.rank:
            self.wait()
        made = make()
        if not self.rank:
            self.wait()
        return made

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            with _watched():
                dist.barrier()


ALONE = Place(0, 1)


@contextlib.contextmanager
def joined_processes(args: argparse.Namespace) -> Iterator[Place]:
    """Join the processes that the launcher started, in the block; each takes the GPU of its number.

    The launcher says so in the environment: RANK, WORLD_SIZE and LOCAL_RANK. Only the first process prints.
    """
    place = Place(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if place.count == 1:
        yield place
        return
    args.gpu = int(os.environ.get("LOCAL_RANK", 0))
    dist.init_process_group("gloo")  # for a few numbers and lists, which are on the CPU
    try:
        with contextlib.ExitStack() as stack:
            if place.rank:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
            yield place
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Stopped in place of torch's many errors when another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise Stopped("another process has stopped: its message, or the launcher's, tells why.") from error
