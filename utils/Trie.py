"""The catalog as a prefix index: sorted arrays in place of nodes, so that 15 million items are a few arrays."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.files import fingerprint, load_array, read_json, require_file, save_json, staged_directory
from utils.fsq import PUBLISHED, Codebook, code_keys

FORMAT = 2
ARRAYS = ("codes", "items", "postings", "code_starts")
REMEDY = "Save the index again: Trie(codes).save(folder)."


class Trie:
    """Prefix tree over the codes of a catalog, and for every code the items that have it, as each of their K codes.

    Items are sorted by their codes, ties by ascending id. A node of depth d is a run of items in this order that
    share their first d codes. Its number is its rank among the nodes of depth d; the only node of depth 0 is the root.

    Attributes:
        codes: (N, K) int16, sorted.
        items: (N,) int32 item ids in the same order; int64 where an id needs it.
        starts: K + 1 tensors; `starts[d]` (nodes of depth d, plus one) int32, where each node begins, and at its end N.
        postings: (K, N) int32, in row p the ranks of all items in the sorted order, by code number p of theirs.
        code_starts: (K, V) int64, where the ranks of each code begin in a row of `postings`, and at its end N.
        codebook: of the codes.
    """

    def __init__(
        self,
        codes: np.ndarray | Tensor,
        items: np.ndarray | Tensor | None = None,
        codebook: Codebook = PUBLISHED,
    ):
        """Build from codes (N, K) of any integer type; `items` (N,) are their ids, 0 to N - 1 by default.

        Raises:
            ValueError: codes are not (N, K) integers of the codebook, or ids not N different integers of 0 or more.
        """
        codes, per_item, size = np.asarray(codes), codebook.per_item, codebook.size
        if codes.ndim != 2 or codes.shape[1] != per_item or codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be (N, {per_item}) integers, found {codes.shape} {codes.dtype}")
        if codes.size and (codes.min() < 0 or codes.max() >= size):
            raise ValueError(f"codes must lie in [0, {size}), found {codes.min()} to {codes.max()}")
        ids = np.arange(len(codes)) if items is None else np.asarray(items)
        if ids.shape != (len(codes),) or ids.dtype.kind not in "iu":
            raise ValueError(f"items must be ({len(codes)},) integers, found {ids.shape} {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= 2**63):
            raise ValueError(f"items must lie in [0, 2**63), found {ids.min()} to {ids.max()}")
        ids = ids.astype(np.int64)
        codes = codes.astype(np.int16, copy=False)
        order = np.argsort(ids, kind="stable") if items is not None else None
        if order is not None and (twice := np.flatnonzero(np.diff(ids[order]) == 0)).size:
            raise ValueError(f"item {ids[order][twice[0]]} is there twice: every item has one id and one row of codes")
        for column in reversed(range(per_item)):  # least significant first: 16-bit radix sorts, each stable
            keys = codes[:, column] if order is None else codes[order, column]
            rank = np.argsort(keys, kind="stable")
            order = rank if order is None else order[rank]
        self._set(codes[order], ids[order], codebook)

    def _set(self, codes: np.ndarray, items: np.ndarray, codebook: Codebook) -> None:
        """Set all arrays from codes (N, K) int16 and ids (N,) that are sorted already."""
        self.codebook = codebook
        same = np.ones(len(codes), dtype=bool)  # whether an item has the first codes of the item before
        same[:1] = False
        starts = [np.array([0, len(codes)], dtype=np.int32)]
        for column in codes.T:
            same[1:] &= column[1:] == column[:-1]
            starts.append(np.append(np.flatnonzero(~same), len(codes)).astype(np.int32))
        fits = not len(items) or items.max() < 2**31
        self.codes = torch.from_numpy(codes)
        self.items = torch.from_numpy(items.astype(np.int32 if fits else np.int64))
        self.starts = [torch.from_numpy(start) for start in starts]
        self.postings = torch.empty(codebook.per_item, len(codes), dtype=torch.int32)
        self.code_starts = torch.zeros(codebook.per_item, codebook.size + 1, dtype=torch.int64)
        for row, column in enumerate(codes.T):
            self.postings[row] = torch.from_numpy(np.argsort(column, kind="stable"))
            self.code_starts[row, 1:] = torch.from_numpy(np.bincount(column, minlength=codebook.size).cumsum())

    def save(self, folder: str | Path) -> None:
        """Write the index as a folder of .npy files, to be opened by memory mapping.

        The files get new names. trie.json, which lists them, is renamed into place last: whoever opens the folder
        meanwhile gets the old index or the new one, and whoever has the old one open keeps it.
        """
        folder, saving = Path(folder), secrets.token_hex(8)
        with staged_directory(folder) as stage:
            for name, tensor in self._tensors().items():
                np.save(stage / f"{name}.{saving}.npy", tensor.cpu().numpy())
            files = {path.name.split(".")[0]: [path.name, fingerprint(path)] for path in stage.iterdir()}
        header = {"format": FORMAT, "items": len(self), **self.codebook.noted(), "files": files}
        save_json(folder / "trie.json", header)
        for name in files:
            for path in folder.glob(f"{name}.*.npy"):
                if path.name != files[name][0]:
                    path.unlink(missing_ok=True)

    @classmethod
    def open(cls, folder: str | Path) -> "Trie":
        """Open a saved index, mapped from its files without a copy; InputError unless all are there and whole."""
        path = Path(folder) / "trie.json"
        while True:
            header = read_json(require_file(path, REMEDY))
            try:
                return cls._mapped(path, header)
            except (InputError, FileNotFoundError):
                if read_json(path) == header:  # otherwise another index was saved meanwhile, in place of this one
                    raise

    @classmethod
    def _mapped(cls, path: Path, header: dict[str, Any]) -> "Trie":
        """The index that trie.json, at `path`, describes by `header`."""
        if header.get("format") != FORMAT:
            raise InputError(f"{path} is of format {header.get('format')!r}, expected {FORMAT}. {REMEDY}")
        trie, codebook = object.__new__(cls), Codebook.read(header, path)
        try:
            files = {name: (path.parent / file, known) for name, (file, known) in header["files"].items()}
            trie._take(lambda name: torch.from_numpy(load_array(files[name][0], REMEDY, mode="c")), codebook)
            if header["items"] != len(trie):
                raise ValueError(f"{header['items']!r} items")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not list the files of an index ({error!r}). {REMEDY}") from error
        for file, known in files.values():
            if fingerprint(file) != known:
                raise InputError(f"{file} is not the file that {path} was written with. {REMEDY}")
        return trie

    def _tensors(self) -> dict[str, Tensor]:
        starts = {f"starts_{depth}": start for depth, start in enumerate(self.starts)}
        return {**{name: getattr(self, name) for name in ARRAYS}, **starts}

    def _take(self, get: Callable[[str], Tensor], codebook: Codebook) -> None:
        """Set every array to what `get` returns for its name."""
        self.codebook = codebook
        for name in ARRAYS:
            setattr(self, name, get(name))
        self.starts = [get(f"starts_{depth}") for depth in range(codebook.per_item + 1)]

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: torch.device | str) -> "Trie":
        """The same index on another device."""
        tensors, moved = self._tensors(), object.__new__(Trie)
        moved._take(lambda name: tensors[name].to(device), self.codebook)
        return moved

    def node_codes(self, nodes: Tensor, depth: int) -> Tensor:
        """The last code of the prefixes of nodes (...) int64 of a depth of 1 or more: (...) int64."""
        return self.codes[self.starts[depth][nodes], depth - 1].long()

    def children(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Children of nodes (...) int64 of `depth`: first and one past the last, of depth + 1, ascending by code."""
        below, here = self.starts[depth + 1], self.starts[depth]
        return torch.searchsorted(below, here[nodes]), torch.searchsorted(below, here[nodes + 1])

    def find(self, prefixes: Tensor | np.ndarray) -> Tensor:
        """Nodes of the prefixes (..., d), 0 <= d <= K, -1 where no item has the prefix: (...) int64.

        One binary search per code, over all prefixes at once. ValueError unless codes are whole numbers, at most K.
        """
        prefixes = self._codes(prefixes)
        if prefixes.shape[-1] > self.codebook.per_item:
            raise ValueError(f"a prefix has at most {self.codebook.per_item} codes, found {tuple(prefixes.shape)}")
        nodes = torch.zeros(prefixes.shape[:-1], dtype=torch.int64, device=self.items.device)
        if not len(self):
            return nodes - 1
        missing = torch.zeros_like(nodes, dtype=torch.bool)
        for depth in range(prefixes.shape[-1]):
            wanted = prefixes[..., depth]
            low, high = self.children(nodes, depth)
            last = high - 1
            while (low < last).any():
                middle = (low + last) // 2
                # Where a search has ended it stays: one step further begin the children of another node.
                right = (low < last) & (self.node_codes(middle, depth + 1) < wanted)
                low, last = torch.where(right, middle + 1, low), torch.where(right, last, middle)
            missing |= self.node_codes(low, depth + 1) != wanted
            nodes = low
        return nodes.masked_fill(missing, -1)

    def _codes(self, codes: Tensor | np.ndarray) -> Tensor:
        """Codes (..., d) as int64 on the device of the index; ValueError unless they are whole numbers."""
        try:
            found = torch.as_tensor(codes, device=self.items.device)
        except (TypeError, ValueError) as error:
            raise ValueError(f"codes must be (..., d) whole numbers, found {codes!r}") from error
        numbers = not (found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool)
        if not found.ndim or (found.numel() and not numbers):
            raise ValueError(f"codes must be (..., d) whole numbers, found {tuple(found.shape)} {found.dtype}")
        return found.long()

    def has_prefix(self, prefixes: Tensor) -> Tensor:
        """Whether any item starts with the codes of (..., d): (...) bool."""
        return self.find(prefixes) >= 0

    def has_item(self, codes: Tensor) -> Tensor:
        """Whether any item has exactly the codes (..., K): (...) bool."""
        return self.has_prefix(self._whole(self._codes(codes)))

    def next_codes(self, prefix: Tensor) -> Tensor:
        """Codes that may follow one prefix (d,), d < K, ascending; empty where no item has the prefix.

        ValueError for K codes or more, or several prefixes.
        """
        prefix = self._codes(prefix)
        if prefix.ndim != 1:
            raise ValueError(f"expected one prefix (d,), found {tuple(prefix.shape)}")
        if len(prefix) >= self.codebook.per_item:
            raise ValueError(f"nothing follows {len(prefix)} codes: an item has {self.codebook.per_item}")
        depth, node = len(prefix), self.find(prefix[None])
        if node.item() < 0:
            return torch.empty(0, dtype=torch.int64, device=self.items.device)
        first, end = self.children(node, depth)
        return self.node_codes(torch.arange(first.item(), end.item(), device=self.items.device), depth + 1)

    def items_of(self, codes: Tensor) -> Tensor:
        """Ids of all items with exactly these K codes, ascending; empty where there are none."""
        node = self.find(self._whole(self._codes(codes), alone=True)[None]).item()
        if node < 0:
            return self.items[:0].long()
        return self.items[self.starts[-1][node] : self.starts[-1][node + 1]].long()

    def restrict(self, allowed: np.ndarray) -> "Trie":
        """The index of some of the items (in stock, not yet seen), those whose ids a mask (ids,) of bool allows.

        Raises:
            ValueError: `allowed` is no mask, but a list of ids for example, or ends before the highest id.
        """
        allowed = np.asarray(allowed)
        if allowed.dtype != bool or allowed.ndim != 1:
            raise ValueError(
                f"allowed must be a mask of bool, one for each item id, found {allowed.shape} {allowed.dtype}; of a "
                "list of ids: np.isin(np.arange(number of items), ids)"
            )
        if len(self) and len(allowed) <= self.items.max():
            raise ValueError(f"the mask has {len(allowed)} answers, the ids go up to {self.items.max()}")
        keep = allowed[self.items.numpy()]
        subset = object.__new__(Trie)
        subset._set(self.codes.numpy()[keep], self.items.numpy()[keep], self.codebook)
        return subset

    def extend(self, codes: np.ndarray, items: np.ndarray) -> "Trie":
        """The index with new items, codes (M, K) and ids (M,); nothing is sorted anew where all new ids are higher."""
        new = Trie(codes, items, self.codebook)
        old_codes, old_items = self.codes.numpy(), self.items.numpy()
        if len(self) and len(new) and new.items.min() <= self.items.max():
            both = np.concatenate([old_codes, new.codes]), np.concatenate([old_items, new.items])
            return Trie(*both, self.codebook)
        # Every new id is higher, so that a new item comes after all old ones of the same codes.
        ranks = np.searchsorted(code_keys(old_codes), code_keys(new.codes.numpy()), side="right")
        grown = object.__new__(Trie)
        ids = np.insert(old_items.astype(np.int64), ranks, new.items.numpy())
        grown._set(np.insert(old_codes, ranks, new.codes.numpy(), axis=0), ids, self.codebook)
        return grown

    def _whole(self, codes: Tensor, alone: bool = False) -> Tensor:
        """The same codes (..., K), or (K,) of one item `alone`; ValueError unless there are K."""
        if codes.shape[-1:] != (self.codebook.per_item,) or (alone and codes.ndim > 1):
            raise ValueError(f"an item has {self.codebook.per_item} codes, found {tuple(codes.shape)}")
        return codes
