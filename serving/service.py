"""What the server has behind its paths: the recommender, the queues in front of it, and the counters.

Recommendations wait in one queue, whose one thread computes those that have arrived together. All else that looks into
the bundle waits in a second queue, whose threads take one call each, so that none of it keeps the recommendations.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from serving.asked import Request
from serving.batching import Batcher
from serving.metrics import Metrics
from serving.recommender import Recommender
from utils.errors import InputError

THREADS = 4  # of the second queue
TOKEN = "RECGPT_TOKEN"  # noqa: S105 - the environment's variable with the token of those who may write


class Refused(Exception):  # noqa: N818 - said to the client, who can mend it
    """What is wrong with a request, in one sentence."""


class Gone(Exception):  # noqa: N818
    """The client has closed its connection."""


class Limits(NamedTuple):
    """How much is computed together, and how much may wait."""

    batch: int = 48
    queue: int = 256


class Service:
    """All that answers; its methods that wait are called from the server's event loop."""

    def __init__(self, recommender: Recommender, limits: Limits, token: str | None):
        """With the token that writes need; None: nothing may be written."""
        self.recommender, self.limits, self.token = recommender, limits, token
        self.metrics, self.stopping = Metrics(), False
        self.asked = Batcher(self._recommend, limits.batch, limits.queue, began=self.metrics.began)
        self.others = Batcher(lambda calls: [outcome(call) for call in calls], 1, limits.queue, THREADS)

    async def recommend(self, http: HttpRequest, request: Request) -> list:
        """The recommendations of a request, computed together with those of others."""
        if request.filter:  # looks at all items the first time, which would keep the others waiting
            await self.call(http, self.recommender.matching, request.filter)
        return await until_gone(http, self.asked.submit(request))

    async def call(self, http: HttpRequest, function: Callable, *arguments: Any) -> Any:
        """What a function returns; it runs in a thread."""
        return await until_gone(http, self.others.submit(lambda: function(*arguments)))

    def close(self, seconds: float) -> bool:
        """Answer what waits, and nothing more; False if that takes longer."""
        self.stopping, end = True, time.monotonic() + seconds
        return all(queue.close(max(0.0, end - time.monotonic())) for queue in (self.asked, self.others))

    def text_of_metrics(self) -> str:
        """The counters, with what is true at this moment, for Prometheus."""
        gauges = {
            "recgpt_queue_length": ("Recommendations that wait.", len(self.asked)),
            "recgpt_other_queue_length": ("Other requests that wait.", len(self.others)),
        }
        with contextlib.suppress(InputError):  # of a damaged bundle, whose items cannot be counted
            change = self.recommender.view().change
            gauges["recgpt_items"] = "Items that may be recommended.", change.count
            gauges["recgpt_generation"] = "Changes of the bundle since it was made.", change.generation
        return self.metrics.text(gauges)

    def _recommend(self, requests: Sequence[Request]) -> list:
        answers = self.recommender.answer(requests)
        return [Refused(str(found)) if isinstance(found, ValueError) else found for found in answers]


def outcome(call: Callable[[], Any]) -> Any:
    """What a call of the library returns; what is wrong with its arguments is the client's to mend."""
    try:
        return call()
    except ValueError as error:
        return Refused(str(error))


async def until_gone(http: HttpRequest, future: Future) -> Any:
    """The result of a future, which is cancelled, unless it has begun, when the client goes away; Gone then."""
    result, gone = asyncio.wrap_future(future), asyncio.create_task(disconnected(http))
    try:
        await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise Gone
        return result.result()
    finally:
        gone.cancel()
        result.cancel()  # which changes nothing where it is done


async def disconnected(http: HttpRequest) -> None:
    """Wait until the client closes its connection; its body has been read, or is not wanted."""
    with contextlib.suppress(HTTPException):  # of a body that nobody wants, and that does not go on
        while (await http.receive())["type"] != "http.disconnect":
            pass
