"""Where two files hold different choices for the same tokens.

A choice is the set of experts of one token in one layer; their order does not count. Blocks of raw
ids are compared as bytes, and only blocks that differ are compared token by token. Tokens that one
side did not route (empty slots) are left out. Explanations: the first layer that differs, choices
of a token before or after, a layer that repeats another, a layer with the choices of another one.
"""

import struct
from array import array
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, count
from operator import ne

from microscope_tui.extensions.anatomy.routing_file import Routing

_BLOCK = 1024
"""Tokens whose bytes are compared first."""
_TOKENS_AT_ONCE = 1 << 16
_BINS = 10
_MOST_SWAPS = 1 << 17
"""Different swaps of a layer that are counted."""
_SHIFTS = (-2, -1, 1, 2)
_LEAST = 8
"""Fewest different choices of a shift, a copy or a moved layer."""
_SAMPLED = 512
"""Tokens, for copies and moved layers."""
_Row = tuple[int, ...]
_HALF = struct.Struct("<e")


class NotComparable(ValueError):
    """The files do not hold choices of the same tokens; the message names the first difference."""


@dataclass(slots=True)
class LayerMismatch:
    """How the choices of two files differ in one layer."""

    name: str
    depth: int
    compared: int = 0
    """Tokens that both sides routed."""
    differing: int = 0
    swaps: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How often B chose the second expert instead of the first."""
    first: int = 0
    """Tokens that differ in no layer before."""
    holes: Counter[str] = field(default_factory=Counter)
    """Tokens without a choice, by file: A or B."""
    shifts: Counter[int] = field(default_factory=Counter)
    """Differing choices that B made so many tokens later."""

    @property
    def shift(self) -> int:
        """By how many tokens B is late, if that explains most of its differences; else 0."""
        ((shift, times),) = self.shifts.most_common(1) or [(0, 0)]
        return shift if times >= _LEAST and 2 * times > self.differing else 0

    @property
    def share(self) -> float | None:
        """None: no token was routed on both sides."""
        return self.differing / self.compared if self.compared else None


@dataclass(frozen=True, slots=True)
class MarginBin:
    """Choices whose margin in A lies between two values, both included."""

    low: float
    high: float
    compared: int
    differing: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How the choices of two files differ."""

    tokens: int
    """Tokens that both sides routed."""
    tokens_differing: int
    """Tokens with another choice in at least one layer."""
    layers: Sequence[LayerMismatch]
    margins: Sequence[MarginBin]
    """Tenths of the choices, the smallest margin first; empty without margins."""
    margins_of: str = "A"
    """The file of the margins: A or B."""
    total: int = 0
    """Tokens in the files."""
    copies: Sequence[tuple[str, str, str]] = ()
    """File (A or B), layer, and the layer before it that has the same choices."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """Layers of B with the choices of another layer of A, and that layer; without copies."""

    @property
    def origin(self) -> LayerMismatch:
        """The layer in which most tokens differ first."""
        return max(self.layers, key=lambda layer: layer.first)

    def routed(self, file: str) -> int:
        """Tokens of A or B with a choice."""
        return self.total - min(layer.holes[file] for layer in self.layers)

    def layers_without(self, files: str) -> list[str]:
        """Layers without any choice in A, in B, or in both (``AB``), and with some elsewhere."""
        found = []
        for layer in self.layers:
            without = [file for file in "AB" if layer.holes[file] == self.total]
            if not layer.compared and without == list(files):
                found.append(layer.name)
        return found

    @property
    def compared(self) -> int:
        """Tokens that both files routed, summed over layers."""
        return sum(layer.compared for layer in self.layers)

    @property
    def differing(self) -> int:
        """Those of ``compared`` with other experts in B."""
        return sum(layer.differing for layer in self.layers)

    @property
    def share(self) -> float:
        """``differing`` / ``compared``, 0 … 1."""
        return self.differing / self.compared

    def top_swaps(self, most: int) -> list[tuple[LayerMismatch, int, int, int]]:
        """The most frequent swaps: layer, expert in A, expert in B, how often."""
        found = [
            (layer, old, new, times)
            for layer in self.layers
            for (old, new), times in layer.swaps.most_common(most)
        ]
        return sorted(found, key=lambda one: -one[3])[:most]


def compare(a: Routing, b: Routing, *, token_ids: bool = True, margins_of: str = "A") -> Mismatch:
    """Compare the choices of two files.

    Args:
        a: Its names of the layers are shown.
        b: The other file.
        token_ids: Whether both files have token ids, which then must be equal.
        margins_of: File whose margins sort the choices: A, B, or empty if neither has any.

    Raises:
        NotComparable: they differ in tokens, layers, experts or k, or no token was routed in
            both.
    """
    _refuse_others(a, b, token_ids)
    flags = bytearray(a.tokens)
    seen: Counter[int] = Counter()
    differing: Counter[int] = Counter()
    layers = []
    for index, (name, depth) in enumerate(zip(a.shape.layer_names, a.shape.layers, strict=True)):
        layer = LayerMismatch(name, depth)
        for start in range(0, a.tokens, _TOKENS_AT_ONCE):
            end = min(start + _TOKENS_AT_ONCE, a.tokens)
            other, unrouted = _Piece(a, b, index, start, end, flags).into(layer)
            if margins_of:
                # Bit patterns are counted: 65,536 at most, so nothing grows with the tokens.
                side = b if margins_of == "B" else a
                patterns = array("H", side.raw("margins", index, start, end))
                seen.update(patterns)
                seen.subtract([patterns[token] for token in unrouted])
                differing.update([patterns[token] for token in other])
            a.release()
            b.release()
        layers.append(layer)
    routed = max(layer.compared for layer in layers)
    if not routed:
        raise NotComparable("no token was routed on both sides")
    names = a.shape.layer_names
    rows_a, rows_b = _sampled(a), _sampled(b)
    copies = [("A", names[layer], names[other]) for layer, other in _copies(rows_a)]
    copied = dict(_copies(rows_b))
    copies += [("B", names[layer], names[other]) for layer, other in copied.items()]
    moved = {names[layer]: names[other] for layer, other in _moved(rows_a, rows_b, copied)}
    return Mismatch(
        routed,
        flags.count(1),
        layers,
        _bins(seen, differing),
        margins_of or "A",
        a.tokens,
        copies,
        moved,
    )


_Sampled = list[dict[int, _Row]]
"""Layer → token → its choice, sorted; tokens from all of the file that the layer routed."""


def _sampled(side: Routing) -> _Sampled:
    tokens = range(0, side.tokens, -(-side.tokens // _SAMPLED))
    layers = []
    for layer in range(len(side.shape.layers)):
        rows = {token: tuple(sorted(*side.chosen(layer, token, token + 1))) for token in tokens}
        layers.append({token: row for token, row in rows.items() if row})
        side.release()
    return layers


def _copies(layers: _Sampled) -> Iterator[tuple[int, int]]:
    """Layers with the choices of a layer before them, and that layer."""
    for layer, mine in enumerate(layers):
        if len(set(mine.values())) < _LEAST:  # a collapsed router
            continue
        for other in range(layer):
            if len(mine.items() & layers[other].items()) >= 0.99 * len(mine):
                yield layer, other
                break


def _moved(a: _Sampled, b: _Sampled, copied: Container[int]) -> Iterator[tuple[int, int]]:
    """Layers of B of which another layer of A explains most differences, and that layer.

    Those that repeat a layer of B (``copied``) are left out.
    """
    places: dict[int, dict[_Row, list[int]]] = defaultdict(lambda: defaultdict(list))
    for layer, rows in enumerate(a):
        for token, row in rows.items():
            places[token][row].append(layer)
    for layer, rows in enumerate(b):
        differing = [
            (token, row)
            for token, row in rows.items()
            if layer not in copied and token in places and row != a[layer].get(token)
        ]
        explained: dict[int, list[_Row]] = defaultdict(list)
        for token, row in differing:
            for other in places[token].get(row, ()):
                explained[other].append(row)
        if explained:
            other = max(explained, key=lambda one: len(explained[one]))
            found = explained[other]
            if 2 * len(found) > len(differing) and len(set(found)) >= _LEAST:
                yield layer, other


def _refuse_others(a: Routing, b: Routing, token_ids: bool) -> None:
    for what, mine, theirs in (
        ("tokens", a.tokens, b.tokens),
        ("layers", len(a.shape.layers), len(b.shape.layers)),
        ("top_k", a.shape.top_k, b.shape.top_k),
        ("num_experts", a.shape.num_experts, b.shape.num_experts),
    ):
        if mine != theirs:
            raise NotComparable(f"{what}: {mine:,} in A, {theirs:,} in B")
    for number, (mine, theirs) in enumerate(zip(a.shape.layers, b.shape.layers, strict=True)):
        if mine != theirs:
            how = "if one lacks the dense layers, compare each with a probe"
            raise NotComparable(f"layer number {number}: depth {mine} in A, {theirs} in B; {how}")
    if not a.tokens:
        raise NotComparable("no tokens")
    for start in range(0, a.tokens if token_ids else 0, _TOKENS_AT_ONCE):
        ours, others = (one.token_ids(start, start + _TOKENS_AT_ONCE) for one in (a, b))
        if ours != others:
            at = next(n for n, (x, y) in enumerate(zip(ours, others, strict=True)) if x != y)
            raise NotComparable(
                f"token {start + at:,}: id {ours[at]:,} in A, {others[at]:,} in B; "
                "compare two files of the same tokens"
            )


class _Piece:
    def __init__(
        self, a: Routing, b: Routing, layer: int, start: int, end: int, flags: bytearray
    ) -> None:
        self._start = start
        self._count = end - start
        self._flags = flags
        self._a, self._b = (one.raw("ids", layer, start, end) for one in (a, b))
        self._k = a.shape.top_k
        self._code = a.places.sections["ids"].code
        self._row = struct.Struct(f"<{self._k}{self._code}")
        self._experts = a.shape.num_experts
        self._empty = a.places.empty_slot

    def into(self, layer: LayerMismatch) -> tuple[list[int], list[int]]:
        """Returns tokens that differ, and tokens not routed by both."""
        differing: list[int] = []
        unrouted: list[int] = []
        for token, mine, theirs in self._candidates():
            holes = mine[0] == self._empty, theirs[0] == self._empty
            if any(holes):
                unrouted.append(token)
                layer.holes.update(compress("AB", holes))
            elif set(mine) != set(theirs):
                differing.append(token)
                layer.first += not self._flags[self._start + token]
                self._flags[self._start + token] = 1
                layer.shifts.update(self._shifts(token, set(mine)))
                _swap(layer, self._chosen(mine), self._chosen(theirs))
        layer.compared += self._count - len(unrouted)
        layer.differing += len(differing)
        return differing, unrouted

    def _shifts(self, token: int, mine: set[int]) -> Iterator[int]:
        """By how many tokens later B made the same choice."""
        for shift in _SHIFTS:
            at = (token + shift) * self._row.size
            if 0 <= at < len(self._b) and set(self._row.unpack_from(self._b, at)) == mine:
                yield shift

    def _chosen(self, row: _Row) -> list[int]:
        return [expert for expert in row if expert < self._experts]

    def _candidates(self) -> Iterator[tuple[int, _Row, _Row]]:
        """Tokens whose rows differ or that neither side routed."""
        width = self._row.size
        for first in range(0, self._count, _BLOCK):
            place = slice(first * width, (first + _BLOCK) * width)
            mine, theirs = self._a[place], self._b[place]
            # Whether a first slot is empty: the chosen experts come first.
            unrouted = self._empty in array(self._code, mine)[:: self._k]
            if mine == theirs and not unrouted:
                continue
            rows = list(self._row.iter_unpack(mine)), list(self._row.iter_unpack(theirs))
            yield from compress(zip(count(first), *rows, strict=False), map(ne, *rows))
            if unrouted:
                for at, (row, other) in enumerate(zip(*rows, strict=True), first):
                    if row[0] == self._empty and row == other:
                        yield at, row, other


def _swap(layer: LayerMismatch, old: Sequence[int], new: Sequence[int]) -> None:
    """Pair what only A chose with what only B chose, in the order of their weights."""
    gone = [expert for expert in old if expert not in new]
    come = [expert for expert in new if expert not in old]
    for pair in zip(gone, come, strict=False):
        if pair in layer.swaps or len(layer.swaps) < _MOST_SWAPS:
            layer.swaps[pair] += 1


def _bins(seen: Counter[int], differing: Counter[int]) -> list[MarginBin]:
    """Tenths of the choices by margin; equal margins stay together."""
    values = sorted(
        (margin, count, differing[pattern])
        for pattern, count in seen.items()
        if count > 0 and (margin := _HALF.unpack(pattern.to_bytes(2, "little"))[0]) == margin
    )
    total = sum(count for _, count, _ in values)
    bins: list[MarginBin] = []
    before = 0
    for margin, here, differ in values:
        if bins and before * _BINS < total * len(bins):
            last = bins[-1]
            bins[-1] = MarginBin(last.low, margin, last.compared + here, last.differing + differ)
        else:
            bins.append(MarginBin(margin, margin, here, differ))
        before += here
    return bins
