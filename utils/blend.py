"""A log-linear blend: one score of texts, the domain's log and RecGPT, whose few weights are fitted in seconds.

score(user, item) = sum over features of weight * feature / scale. Every feature takes the form in which it is cheapest:

    dense    cosine of whitened texts to a query of the user: all queries add up to one, so that they cost one product
    item     the same for all users: log popularity
    era      the same for all users and items of an era each: how well an item goes with the time (utils/eras.py)
    sparse   zero for nearly all items: what the log says of the items of the history, and the history itself
    given    an array from elsewhere: RecGPT's log-probability of the item's four codes, or its score of the item

The weights are fitted to the last items of histories by maximum likelihood: softmax regression over all candidates.
Letters of the shapes as in utils/data.py: B users, N items, M candidates, E embedding width, K codes, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.sparse import csr_array
from torch import Tensor

from utils.data import Sequences
from utils.errors import InputError
from utils.scores import DECAY, REACH, LogStatistics, Statistics, history_weights, item_rows, places, repeats
from utils.search import (
    FIRST_ITEMS,
    SCAN_USERS,
    TopK,
    best_of_blocks,
    best_scored,
    block_bounds,
    code_table,
    slot_rows,
)
from utils.util import check_count
from utils.whitening import unit_rows

DENSE = ("text_mean", "text_last")
SPARSE = ("in_history", "recency", "transitions", "item_cosine", "ease")
ERA, ITEM, NETWORK = "era", "popularity", "recgpt"
FEATURES = (*DENSE, ERA, NETWORK, ITEM, *SPARSE)
WITHOUT_LOG = (*DENSE, *SPARSE[:2])  # those that a catalog alone has

SHARE = 0.1  # of popularity, added to the transitions
NEIGHBOURS = 100  # of an item, whose weights by EASE count
NO_LOG, WITH_LOG, WITH_NETWORK = KINDS = ("no log", "log", "log and RecGPT")  # names of blends in files

FIT_USERS, LEAST_USERS = 700, 64  # of a fit; the second however large the catalog
FIT_SCORES = 1 << 25  # items of all users together: 128 MiB for each dense feature
SEED = 0  # which users are drawn
L2 = 1e-4  # on weights of features whose scale is 1, against the mean log-likelihood of a user
CHUNK = 1 << 19  # scores that the fit computes at once, so that they stay in the cache


class Domain(NamedTuple):
    """What is known of a catalog of N items: its texts and, where there is one, its log."""

    rows: np.ndarray  # (N, E) float32, embeddings as `whiten` leaves them
    log: LogStatistics | None = None
    ease: csr_array | None = None  # (N, N) float32, of EASE the largest weights of each item, for small catalogs

    @classmethod
    def of(cls, known: Statistics) -> "Domain":
        """The same of EASE's weights cut to the largest."""
        return cls(known.rows, known.log, None if known.ease is None else neighbours(known.ease))

    def features(self, network: bool = False) -> tuple[str, ...]:
        """Names of the features, in the order in which `fit` reads them."""
        sparse = SPARSE[:2] if self.log is None else SPARSE[:-1] if self.ease is None else SPARSE
        era, network = (() if self.log is None else (ERA,)), ((NETWORK,) if network else ())
        return (*DENSE, *era, *network, ITEM, *sparse)

    def queries(self, histories: Sequences, extra: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Of each dense feature the queries of B histories, (B, E) float32 of length one or zero.

        `extra` (X, E) float32 are whitened rows of items N, N + 1, …, which histories may have, and the domain has not.
        """
        items, extra = len(self.rows), self.rows[:0] if extra is None else extra
        queries = {}
        for name, reach in (("text_mean", REACH), ("text_last", 1)):
            weights = history_weights(histories, items + len(extra), reach=reach)
            query = weights[:, :items] @ self.rows
            queries[name] = unit_rows(query + weights[:, items:] @ extra if len(extra) else query)
        return queries

    def popularity(self) -> np.ndarray:
        """Logarithm of each item's share of the log, (N,) float32; zeros without one."""
        return np.zeros(len(self.rows), dtype=np.float32) if self.log is None else np.log(self.log.share)

    def sparse(self, histories: Sequences) -> dict[str, csr_array]:
        """The sparse features of all N items for B histories, each (B, N) float32 and zero where it has no entry.

        With t the history-weighted transitions and p the popularity, log(t + 0.1 p) is log p plus a constant plus
        log(1 + t / (0.1 p)), of which the last alone differs between users, and is zero where t is.
        """
        items = len(self.rows)
        found = item_rows(histories, items, np.ones(len(histories.items)))
        found.data[:] = 1
        user, place = places(histories)
        latest = found.copy()
        latest.data[:] = 0
        lag = histories.lengths[user] - 1 - place
        entry = np.searchsorted(keys(found), user * items + histories.items)
        np.maximum.at(latest.data, entry, (DECAY**lag).astype(np.float32))
        features = {"in_history": found, "recency": latest}
        if self.log is not None:
            weights = history_weights(histories, items)
            after, near = weights @ self.log.transitions, weights @ self.log.cosine
            features["transitions"] = with_data(after, np.log1p(after.data / (SHARE * self.log.share[after.indices])))
            features["item_cosine"] = with_data(near, np.sqrt(near.data))
        if self.ease is not None:
            near = found @ self.ease
            features["ease"] = with_data(near, np.sqrt(near.data))
        return features


def neighbours(weights: np.ndarray) -> csr_array:
    """The largest positive weights of each row of (N, N), at most NEIGHBOURS, and zeros in place of the others."""
    count = min(NEIGHBOURS, len(weights))
    bar = np.partition(weights, -count, axis=1)[:, -count, None]
    return csr_array(np.where((weights >= bar) & (weights > 0), weights, 0))


def with_data(matrix: csr_array, data: np.ndarray) -> csr_array:
    """A matrix with the same places and other values."""
    return csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def keys(matrix: csr_array) -> np.ndarray:
    """Row times number of columns plus column of each entry of a matrix, int64, in the order of its data."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return row * matrix.shape[1] + matrix.indices


@dataclass(frozen=True)
class Blend:
    """Weights of the features, by name, and their scales: a score is the sum of weight * feature / scale."""

    weights: dict[str, float]
    scales: dict[str, float]

    def factor(self, name: str) -> float:
        """What a feature is multiplied by; 0 for one that the blend does not have."""
        return self.weights[name] / self.scales[name] if name in self.weights else 0.0


class Blender:
    """A blend that scores and finds the candidates of a domain, exactly, for batches of users."""

    def __init__(
        self,
        blend: Blend,
        domain: Domain,
        candidates: np.ndarray,
        codes: np.ndarray | None = None,
        exclude_history: bool = False,
    ):
        """Prepare the arrays of a catalog.

        Args:
            blend: the weights; without those of RecGPT no logits are needed.
            domain: of N items.
            candidates: (M,) int64 ids of the items that may be recommended, ascending.
            codes: (N, K) int16, for a blend with RecGPT.
            exclude_history: a user's own items are not recommended.
        """
        every = len(candidates) == len(domain.rows)
        self.blend, self.domain, self.exclude_history = blend, domain, exclude_history
        self.candidates = None if every else candidates
        self.items = torch.from_numpy(candidates)
        self.rows = torch.from_numpy(domain.rows if every else domain.rows[candidates])  # (M, E)
        self.constant = torch.from_numpy(blend.factor(ITEM) * domain.popularity()[candidates]).float()[:, None]
        self.codes = None if codes is None else torch.from_numpy(codes[candidates]).int()
        self.eras = torch.from_numpy(domain.log.eras.item[candidates]) if blend.factor(ERA) else None  # (M,)

    def search(self, histories: Sequences, k: int, log_probs: Tensor | None = None) -> TopK:
        """The k best candidates of B users, best first; ties by ascending id.

        Args:
            histories: what the users had, in time order.
            k: length of the lists.
            log_probs: of RecGPT's codes, (B, K, V) float32, or, where it predicts items, scores of the candidates,
                (B, M); on the CPU, and not read by a blend without it.
        """
        check_count(k, "k")
        parts = []
        for start in range(0, len(histories), SCAN_USERS):
            users = slice(start, min(start + SCAN_USERS, len(histories)))
            blocks = self.blocks(histories, users, log_probs, max(FIRST_ITEMS, k))
            parts.append(best_of_blocks(blocks, self.items, users.stop - start, k))
        top = TopK(*(torch.cat(column) for column in zip(*parts, strict=True)))
        return TopK(top.items.masked_fill(top.scores == -torch.inf, -1), top.scores)

    def scores_and_top(self, histories: Sequences, k: int, log_probs: Tensor | None = None) -> tuple[Tensor, TopK]:
        """As `scores`, and the lists of `search`, at once."""
        scores = self.scores(histories, log_probs)
        return scores, best_scored(scores, self.items, k)

    def scores(self, histories: Sequences, log_probs: Tensor | None = None, extra: np.ndarray | None = None) -> Tensor:
        """The scores of all candidates for B users, (B, M) float32; -inf for an item that is not recommended.

        Histories may have items N, N + 1, … of whitened rows `extra` (X, E) float32, of which only texts are known.
        """
        scores = torch.empty(len(histories), len(self.items))
        for start in range(0, len(histories), SCAN_USERS):
            users = slice(start, min(start + SCAN_USERS, len(histories)))
            blocks = list(self.blocks(histories, users, log_probs, FIRST_ITEMS, extra))
            scores[users] = torch.cat(blocks)[:, : users.stop - start].T
        return scores

    def scorer(self, histories: Sequences) -> np.ndarray:
        """The scores of all N items for B users without RecGPT, (B, N) float32: see `utils.scores.Scorer`."""
        scores = self.scores(histories).numpy()
        if self.candidates is None:
            return scores
        every = np.full((len(histories), len(self.domain.rows)), -np.inf, dtype=np.float32)
        every[:, self.candidates] = scores
        return every

    def blocks(
        self,
        histories: Sequences,
        users: slice,
        log_probs: Tensor | None,
        first: int,
        extra: np.ndarray | None = None,
    ) -> Iterator[Tensor]:
        """Scores of all candidates for some users, block by block: (n, users padded to a multiple of eight)."""
        part = histories.select(np.arange(users.start, users.stop))
        queries = self.domain.queries(part, extra)
        part = part if extra is None else part.below(len(self.domain.rows))
        query = sum(self.blend.factor(name) * rows for name, rows in queries.items())  # (B, E)
        query = F.pad(torch.from_numpy(query), (0, 0, 0, -len(part) % 8)).float().T  # (E, B)
        table = given = eras = None
        if self.eras is not None:
            gains = self.blend.factor(ERA) * self.domain.log.eras.by_era(part)  # (B, eras)
            eras = F.pad(torch.from_numpy(gains), (0, 0, 0, -len(part) % 8)).T.contiguous()
        if self.blend.factor(NETWORK):
            network = self.blend.factor(NETWORK) * self.checked_network(log_probs, len(histories), users)
            if network.ndim == 3:
                table = code_table(network)
                slots = slot_rows(table, network.shape[1])
            else:
                given = F.pad(network, (0, 0, 0, -len(part) % 8)).T  # (M, B)
        by_item = self.corrections(part).tocsc()  # (B, M)
        row, user = torch.from_numpy(np.repeat(np.arange(len(self.items)), np.diff(by_item.indptr))), by_item.indices
        user, value = torch.from_numpy(user.astype(np.int64)), torch.from_numpy(by_item.data)
        for start, end in block_bounds(len(self.items), first):
            block = torch.addmm(self.constant[start:end], self.rows[start:end], query)
            if eras is not None:
                block += eras[self.eras[start:end]]
            if table is not None:
                block += F.embedding_bag(self.codes[start:end] + slots, table, mode="sum")
            if given is not None:
                block += given[start:end]
            entries = slice(*by_item.indptr[[start, end]].tolist())
            block[row[entries] - start, user[entries]] += value[entries]  # no pair is there twice
            yield block

    def checked_network(self, log_probs: Tensor | None, count: int, users: slice) -> Tensor:
        """What RecGPT says for some of `count` users; ValueError unless it is of its codes or of the candidates."""
        found, scores = () if log_probs is None else tuple(log_probs.shape), (count, len(self.items))
        per_item = 0 if self.codes is None else self.codes.shape[1]
        if found != scores and (found[:2] != (count, per_item) or len(found) != 3):
            needed = f"log_probs ({count}, {per_item}, V) or scores {scores}"
            raise ValueError(f"the blend reads RecGPT's {needed}, found {found or None}")
        if len(found) == 3 and len(self.codes) and self.codes.max() >= found[2]:
            raise ValueError(f"the blend has codes up to {self.codes.max()}, and RecGPT's log_probs are of {found[2]}")
        if not torch.isfinite(log_probs[users]).all():
            raise ValueError("the blend reads RecGPT's log_probs or scores, found NaN or infinity")
        return log_probs[users]

    def corrections(self, histories: Sequences) -> csr_array:
        """The weighted sum of the sparse features, (B, M) float32; -inf for items that are not recommended."""
        features = self.domain.sparse(histories)
        total = sum(with_data(values, values.data * self.blend.factor(name)) for name, values in features.items())
        if self.exclude_history:
            total = total + with_data(features["in_history"], np.full_like(features["in_history"].data, -np.inf))
        return total.astype(np.float32) if self.candidates is None else total.astype(np.float32)[:, self.candidates]


class Chunk(NamedTuple):
    """The features of all items for b users of a fit, and their targets."""

    dense: Tensor  # (D, b, N) float32, dense features, that of eras, and the given one
    item: Tensor  # (N,) float32
    sparse: list[tuple[Tensor, Tensor]]  # of each sparse feature the entries: places in a flat (b, N) int64, values
    barred: Tensor  # places in a flat (b, N) int64 of items that are no candidates
    targets: Tensor  # (b,) int64

    def loss(self, factors: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log-likelihood of the targets in nats, summed over users, and its gradient by the factors (F,).

        The factors are in the order of the features: dense ones, eras, the given one, that of the items, sparse ones.
        """
        count, users = len(self.dense), torch.arange(len(self.targets))
        weights = torch.from_numpy(factors).float()
        scores = (weights[:count] @ self.dense.flatten(1)).view(self.dense.shape[1:])
        scores += weights[count] * self.item
        flat = scores.view(-1)
        for weight, (place, value) in zip(weights[count + 1 :], self.sparse, strict=True):
            flat.index_add_(0, place, weight * value)
        flat[self.barred] = -torch.inf
        total = scores.logsumexp(1, keepdim=True)
        loss = (total[:, 0] - scores[users, self.targets]).sum().item()
        error = scores.sub_(total).exp_()  # probabilities, from which the targets are taken
        error[users, self.targets] -= 1
        flat = error.view(-1)
        sparse = [flat[place] @ value for place, value in self.sparse]
        gradient = torch.cat([self.dense.flatten(1) @ flat, torch.stack([error.sum(0) @ self.item, *sparse])])
        return loss, gradient.double().numpy()

    def squares(self) -> np.ndarray:
        """Mean square of each feature (F,) over all users and items; of dense ones and that of the items the variance.

        Only differences between the items of a user count, which a constant does not change.
        """
        sparse = [value.square().sum() / self.dense[0].numel() for _, value in self.sparse]
        dense = self.dense.var(2, correction=0).mean(1)
        return torch.cat([dense, torch.stack([self.item.var(correction=0), *sparse])]).double().numpy()


def prepare(
    domain: Domain,
    histories: Sequences,
    targets: np.ndarray,
    candidates: np.ndarray,
    exclude_history: bool,
    network: Tensor | None = None,
) -> Iterator[Chunk]:
    """The features of users whose next items are known, for `fit`.

    Args:
        domain: of N items; its log must not hold the targets.
        histories: what came before the targets.
        targets: (B,) int64. Those that are no candidates are left out.
        candidates: (M,) int64 ids of the items that may be recommended.
        exclude_history: items of the history are no candidates.
        network: (B, N) float32, RecGPT's log-probabilities, or scores, of all items.
    """
    barred = np.setdiff1d(np.arange(len(domain.rows)), candidates)
    usable = ~np.isin(targets, barred)
    if exclude_history:
        usable &= ~repeats(histories, targets)
    rows, item = torch.from_numpy(domain.rows).T, torch.from_numpy(domain.popularity())
    usable, at_once = np.flatnonzero(usable), max(1, CHUNK // len(domain.rows))
    for start in range(0, len(usable), at_once):
        users = usable[start : start + at_once]
        part = histories.select(users)
        dense = [torch.from_numpy(query) @ rows for query in domain.queries(part).values()]
        if domain.log is not None:
            dense.append(torch.from_numpy(domain.log.eras.gains(part)))
        if network is not None:
            dense.append(network[users])
        sparse = domain.sparse(part)
        entries = [(torch.from_numpy(keys(one)), torch.from_numpy(one.data)) for one in sparse.values()]
        never = (np.arange(len(users))[:, None] * len(domain.rows) + barred).ravel()
        never = np.concatenate([never, keys(sparse["in_history"])]) if exclude_history else never
        yield Chunk(torch.stack(dense), item, entries, torch.from_numpy(never), torch.from_numpy(targets[users]))


class Fitted(NamedTuple):
    """A blend, and what it was fitted to."""

    blend: Blend
    users: int
    before: float = 0.0  # mean log-likelihood of a target in nats when all candidates are equally likely
    after: float = 0.0  # the same by the blend


def fit(domains: Iterable[Iterable[Chunk]], names: tuple[str, ...], l2: float = L2) -> Fitted:
    """Fit the weights of features to the targets of one domain, or of several that count alike.

    Softmax regression over all candidates by L-BFGS (scipy), from equal scores on. It is convex: the start does not
    matter. Only `in_history` may speak against an item: features say nearly the same, and without that bound some would
    correct others far down the list at the expense of its top. A feature that is the same everywhere gets no weight.

    Raises:
        InputError: no target is a candidate.
    """
    domains = [chunks for chunks in map(list, domains) if chunks]
    users = [sum(len(chunk.targets) for chunk in chunks) for chunks in domains]
    if not domains:
        raise InputError(
            "no user of train.pkl has two items and a last one that may be recommended: nothing to fit a blend to. "
            "Leave out --blend."
        )
    squares = [sum(len(chunk.targets) * chunk.squares() for chunk in chunks) / sum(users) for chunks in domains]
    scales = np.sqrt(sum(squares))
    varies = scales > 0

    def objective(weights: np.ndarray, l2: float = l2) -> tuple[float, np.ndarray]:
        factors = np.divide(weights, scales, out=np.zeros_like(weights), where=varies)
        loss, gradient = l2 * weights @ weights, 2 * l2 * weights
        for chunks, count in zip(domains, users, strict=True):
            for found, slope in (chunk.loss(factors) for chunk in chunks):
                share = 1 / (count * len(domains))
                loss += found * share
                gradient[varies] += slope[varies] / scales[varies] * share
        return loss, gradient

    start = np.zeros(len(scales))
    bounds = [(None if name == "in_history" else 0, None) for name in names]
    options = {"maxiter": 100, "ftol": 1e-7}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # chunks are small: on a busy machine threads would wait for each other
    try:
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    finally:
        torch.set_num_threads(threads)
    kept = [number for number, name in enumerate(names) if varies[number] and found[number]]
    weights, scale = ({names[number]: float(side[number]) for number in kept} for side in (found, scales))
    before, after = (-float(objective(weights, 0)[0]) for weights in (start, found))
    return Fitted(Blend(weights, scale), sum(users), before, after)


def fit_to_log(
    log: Sequences,
    rows: np.ndarray,
    candidates: np.ndarray,
    exclude_history: bool,
    network: Callable[[Sequences], Tensor] | None = None,
    users: int = FIT_USERS,
) -> dict[str, Fitted]:
    """Fit a blend to a domain's log, and one with RecGPT: their targets are the last items of its histories.

    What the log says is counted without these last items.

    Args:
        log: the histories of train.pkl, which end before the targets of a test.
        rows: (N, E) float32, embeddings as `whiten` leaves them.
        candidates: (M,) int64 ids of the items that may be recommended.
        exclude_history: items of the history are no candidates.
        network: RecGPT's log-probabilities, or scores, (B, N) float32, of all items after B histories.
        users: that are drawn, at most; fewer for large catalogs, which bounds memory and time.

    Returns:
        The blends WITH_LOG and, with a network, WITH_NETWORK.
    """
    log = log.select(np.flatnonzero(log.lengths))
    before, targets = log.split_targets()
    domain = Domain.of(Statistics.of(rows, before))
    users = min(users, max(LEAST_USERS, FIT_SCORES // len(rows)))
    usable = np.flatnonzero(before.lengths.astype(bool) & np.isin(targets, candidates))
    drawn = np.sort(np.random.default_rng(SEED).permutation(usable)[:users])
    histories, targets = before.select(drawn), targets[drawn]
    scores = network(histories) if network is not None and len(drawn) else None
    chunks = list(prepare(domain, histories, targets, candidates, exclude_history, scores))
    blends = {}
    if network is not None:
        blends[WITH_NETWORK] = fit([chunks], domain.features(network=True))
        chunks = [chunk._replace(dense=chunk.dense[:-1]) for chunk in chunks]
    return {WITH_LOG: fit([chunks], domain.features()), **blends}
