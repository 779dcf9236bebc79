"""A bounded queue in front of threads that compute: what waits there is taken together, and computed together.

Nobody waits for company: a thread that is free takes what has arrived meanwhile. So one request alone is answered at
once, and of many the next batch gathers while one is computed.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from utils.errors import InputError


class Full(Exception):  # noqa: N818 - it is no error, but an answer
    """The queue has no room."""


class Closed(Exception):  # noqa: N818
    """The queue takes nothing more, because the server stops."""


class Batcher:
    """Jobs go in one by one, and their results come back as futures.

    A future that is cancelled before its job has begun takes the job out of the queue.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Any]], Sequence[Any]],
        most: int,
        room: int,
        threads: int = 1,
        began: Callable[[int], None] = lambda count: None,
    ):
        """Start the threads.

        Args:
            compute: the results of some jobs, in their order; an exception among them is that of its job alone.
            most: jobs that are computed together, at most.
            room: jobs that may wait.
            threads: that compute.
            began: is told how many jobs are taken together.
        """
        self._compute, self._most, self._room, self._began = compute, most, room, began
        self._waiting: dict[Future, Any] = {}  # in the order of arrival
        self._changed, self._closed = threading.Condition(), False
        # Daemons, so that a computation which does not end cannot keep the process.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Any) -> Future:
        """Put a job into the queue; raises Full or Closed."""
        future = Future()
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) >= self._room:
                raise Full
            self._waiting[future] = job
            self._changed.notify()
        future.add_done_callback(self._leave)
        return future

    def close(self, seconds: float) -> bool:
        """Take no more jobs, and finish those that are there; False if that takes longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _leave(self, future: Future) -> None:
        with self._changed:
            self._waiting.pop(future, None)

    def _take(self) -> dict[Future, Any]:
        """What is to be computed now; nothing once the queue is closed and empty."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            first = list(self._waiting)[: self._most]
            taken = {future: self._waiting.pop(future) for future in first}
        return {future: job for future, job in taken.items() if future.set_running_or_notify_cancel()}

    def _work(self) -> None:
        while True:
            batch = self._take()
            if batch:
                self._began(len(batch))
                self._answer(batch)
            elif self._closed and not self._waiting:
                return

    def _answer(self, batch: dict[Future, Any]) -> None:
        """Give every future its result; where the batch fails as a whole, each job is computed alone."""
        try:
            results = self._compute(list(batch.values()))
        except Exception as error:
            results = [error] * len(batch)
            if len(batch) > 1 and not isinstance(error, InputError):  # which would meet every one of them
                results = None
        if results is None:
            for future, job in batch.items():
                self._answer({future: job})
            return
        for future, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
