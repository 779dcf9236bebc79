"""The law loss = E + A / N^alpha + B / D^beta, fitted to runs of N parameters on D tokens, and how far to trust it.

The fit is that of Hoffmann et al. 2022 (Training Compute-Optimal Large Language Models, section 3.3): least squares of
log losses with a Huber loss, whose threshold is 1e-3, from several starts.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.optimize import OptimizeResult, least_squares

HUBER = 1e-3  # in log loss: beyond it an error counts linearly
LARGEST = 2.0  # exponents are sought from 0 to this
BORDER = 0.01  # an exponent this near to 0 or LARGEST is at its border
LEAST_RUNS, LEAST_SIZES = 8, 3  # runs for five numbers; different N, and D, for a curve with a floor
SAME = 1e-6  # losses that differ by less, as a part, are one: there is no curve to fit
ALIKE = 1.05  # D that differ by less are one size: shares of a few users more or less
STARTS = tuple(itertools.product((0.1, 0.4, 0.9), (0.1, 0.4, 0.9), (0.3, 0.9)))  # alpha, beta, E / lowest loss
DRAWS = 200  # of the bootstrap


class Runs(NamedTuple):
    """Runs, one a place of each array (n,) float64."""

    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray  # in nats

    def select(self, rows: np.ndarray) -> "Runs":
        """Some of the runs, by number or by mask."""
        return Runs(*(side[rows] for side in self))


class Law(NamedTuple):
    """The five numbers of the law."""

    floor: float  # E, in nats
    a: float  # A
    alpha: float
    b: float  # B
    beta: float

    def loss(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Loss in nats at parameters and tokens, float arrays that broadcast."""
        return self.floor + self.a / np.power(parameters, self.alpha) + self.b / np.power(tokens, self.beta)


class Found(NamedTuple):
    """What a fit has found."""

    law: Law | None  # None where there are too few runs, or nothing to fit
    doubts: list[str]  # why the exponents are not identified; empty if they are
    r_squared: float = np.nan  # of log losses
    alpha: tuple[float, float] = (np.nan, np.nan)  # 95 % interval of the bootstrap over runs
    beta: tuple[float, float] = (np.nan, np.nan)


class Check(NamedTuple):
    """How well the smaller runs predict the largest, in nats."""

    measured: float  # mean over its seeds
    predicted: float
    best_smaller: float  # the lowest loss among the smaller: what a prediction must beat


def too_few(runs: Runs) -> list[str]:
    """What is missing for a fit of five numbers; empty if nothing is."""
    missing = []
    if len(runs.losses) < LEAST_RUNS:
        missing.append(f"{len(runs.losses)} run(s), at least {LEAST_RUNS} are needed")
    for what, values in (("numbers of parameters", runs.parameters), ("numbers of tokens", runs.tokens)):
        ordered = np.sort(values)
        sizes = len(ordered[:1]) + np.count_nonzero(ordered[1:] > ordered[:-1] * ALIKE)
        if sizes < LEAST_SIZES:
            missing.append(f"{sizes} different {what}, at least {LEAST_SIZES} are needed")
    if len(runs.losses) > 1 and np.ptp(runs.losses) <= SAME * runs.losses.max():
        missing.append("all losses are the same, so that there is nothing to fit")
    return missing


def solve(runs: Runs, starts: list[np.ndarray] | None = None) -> tuple[Law, np.ndarray]:
    """The law with the least Huber loss of log losses from several starts, and the numbers (5,) to start again from."""
    scales = np.log([runs.parameters, runs.tokens])  # (2, n)
    means = scales.mean(1, keepdims=True)  # terms are taken at the middle of the runs, or A and alpha go together
    log_losses, low = np.log(runs.losses), runs.losses.min()

    def terms(numbers: np.ndarray) -> np.ndarray:
        """Logs (3, n) of the terms E, A / N^alpha, B / D^beta."""
        floor, logs, exponents = numbers[0], numbers[1:3, None], numbers[3:, None]
        return np.vstack((np.full_like(log_losses, floor), logs - exponents * (scales - means)))

    def errors(numbers: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(terms(numbers)) - log_losses

    def slopes(numbers: np.ndarray) -> np.ndarray:
        """Derivatives (n, 5) of the errors."""
        logs = terms(numbers)
        parts = np.exp(logs - np.logaddexp.reduce(logs))
        return np.vstack((parts, -parts[1:] * (scales - means))).T

    patience = 300 if starts is None else 100  # evaluations: fits that start again from a solution need few
    if starts is None:
        starts = [np.array([np.log(low * e), *np.log([low * (1 - e) / 2] * 2), *powers]) for *powers, e in STARTS]
    bounds = ([-np.inf] * 3 + [0, 0], [np.inf] * 3 + [LARGEST] * 2)
    tried: list[OptimizeResult] = [
        least_squares(errors, start, slopes, bounds, loss="huber", f_scale=HUBER, max_nfev=patience) for start in starts
    ]
    best = min(tried, key=lambda result: result.cost).x
    floor, a, b, alpha, beta = best
    a, b = np.exp(np.array([a, b]) + best[3:] * means[:, 0])
    return Law(*map(float, (np.exp(floor), a, alpha, b, beta))), best


def fit(runs: Runs, draws: int = DRAWS, seed: int = 0) -> Found:
    """Fit the law, with intervals of its exponents from fits to runs that are drawn again, with replacement.

    Such an interval says how much an exponent depends on which runs were made. It does not hold what all runs share:
    the data, the held-out users, the learning rate. Draws that miss the least number of sizes are drawn anew.
    """
    missing = too_few(runs)
    if missing:
        return Found(None, missing)
    law, best = solve(runs)
    fitted, log_losses = np.log(law.loss(runs.parameters, runs.tokens)), np.log(runs.losses)
    r_squared = 1 - ((log_losses - fitted) ** 2).sum() / ((log_losses - log_losses.mean()) ** 2).sum()
    rng, exponents = np.random.default_rng(seed), []
    while len(exponents) < draws:
        drawn = runs.select(rng.integers(0, len(runs.losses), len(runs.losses)))
        if not too_few(drawn):
            again = solve(drawn, [best, best * [1, 1, 1, 0.5, 0.5]])[0]
            exponents.append((again.alpha, again.beta))
    alpha, beta = np.percentile(exponents, [2.5, 97.5], axis=0).T.tolist()
    doubts = [
        doubt for name, interval in (("alpha", alpha), ("beta", beta)) if (doubt := doubt_of(name, law, interval))
    ]
    return Found(law, doubts, float(r_squared), tuple(alpha), tuple(beta))


def doubt_of(name: str, law: Law, interval: list[float]) -> str:
    """Why an exponent, by its name in the law, is not identified; empty if it is."""
    value, (low, high), border = getattr(law, name), interval, f"its border, 0 or {LARGEST:g}"
    if not BORDER < value < LARGEST - BORDER:
        return f"{name} is at {border}"
    if low <= BORDER or high >= LARGEST - BORDER:
        return f"the interval of {name} reaches {border}"
    return f"the interval of {name} is wider than {name} itself" if high - low > value else ""


def predict_largest(runs: Runs) -> Check | None:
    """Fit all runs but the largest, with all its seeds, and predict it; None where too few are left.

    The largest is the one of most parameters on most tokens, if there is one that is both.
    """
    largest = (runs.parameters == runs.parameters.max()) & (runs.tokens * ALIKE >= runs.tokens.max())
    smaller = runs.select(~largest)
    if not largest.any() or too_few(smaller):
        return None
    held = runs.select(largest)
    predicted = solve(smaller)[0].loss(held.parameters, held.tokens).mean()
    return Check(float(held.losses.mean()), float(predicted), float(smaller.losses.min()))
