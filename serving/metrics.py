"""Counters of the server in the text format that Prometheus reads; written by hand, since they are few.

recgpt_requests_total{path="/recommend",status="200"} 17
"""

import bisect
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)


class Histogram:
    """How many values lie up to each of some bounds."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: Mapping[str, object]) -> Iterator[str]:
        """Its lines; each bound counts all that lies below it, too."""
        for bound, count in zip([*self.bounds, "+Inf"], itertools.accumulate(self.counts), strict=True):
            yield line(f"{name}_bucket", {**labels, "le": bound}, count)
        yield line(f"{name}_sum", labels, self.sum)
        yield line(f"{name}_count", labels, sum(self.counts))


class Metrics:
    """What the server has done since it started; safe to use from several threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.seconds: dict[str, Histogram] = {}  # by path
        self.batches = Histogram(SIZES)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer. Paths must be few: each is kept."""
        with self._lock:
            self.requests[path, status] += 1
            self.seconds.setdefault(path, Histogram(SECONDS)).add(seconds)

    def began(self, count: int) -> None:
        """Count a batch of recommendations that are computed together."""
        with self._lock:
            self.batches.add(count)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """All of it, with further values: name -> (what it is, value)."""
        with self._lock:
            lines = head("recgpt_requests_total", "counter", "Requests by path and status.")
            for (path, status), count in sorted(self.requests.items()):
                lines.append(line("recgpt_requests_total", {"path": path, "status": status}, count))
            lines += head("recgpt_request_seconds", "histogram", "Seconds from a request to its answer.")
            for path, histogram in sorted(self.seconds.items()):
                lines += histogram.lines("recgpt_request_seconds", {"path": path})
            lines += head("recgpt_batch_size", "histogram", "Recommendations that were computed together.")
            lines += self.batches.lines("recgpt_batch_size", {})
        for name, (words, value) in gauges.items():
            lines += [*head(name, "gauge", words), line(name, {}, value)]
        return "\n".join(lines) + "\n"


def head(name: str, kind: str, words: str) -> list[str]:
    """The two lines before those of a metric."""
    return [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]


def line(name: str, labels: Mapping[str, object], value: float) -> str:
    """A line; labels hold neither quotes nor backslashes, since paths that are not ours are not kept."""
    written = ",".join(f'{label}="{said}"' for label, said in labels.items())
    return f"{name}{{{written}}} {value}" if labels else f"{name} {value}"
