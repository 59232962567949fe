"""The layout of ``routing.bin``, version 1.

A preamble of 64 bytes, sections of numbers aligned to 64 bytes, and a header in JSON at the end.
Everything is little-endian and layer-major: one layer of a million tokens is one piece of memory.
The sections have room for ``capacity`` tokens, of which ``tokens`` are written, so that an
interrupted probe leaves fewer tokens in the same layout.
"""

import struct
from collections.abc import Sequence

import msgspec

MAGIC = b"MOEROUTE"
VERSION = 1
ALIGNMENT = 64
PREAMBLE = struct.Struct("<8sIIQQQ")
"""Magic, version, zero, offset and length of the header, length of the file."""

MOST_LAYERS, MOST_EXPERTS, MOST_CHOICES, MOST_SLICES = 4096, 65_535, 64, 4096
MOST_TOKENS, MOST_HEADER_BYTES = 1 << 32, 64 << 20


class BadRouting(ValueError):
    """The file is not a readable ``routing.bin``; the message has the place and the reason."""


class Section(msgspec.Struct, frozen=True):
    """Numbers of one type: ``struct`` code, and how many per layer and token."""

    name: str
    code: str
    per_layer: bool
    per_token: int

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return struct.calcsize("<" + self.code)

    @property
    def row(self) -> int:
        """Bytes of the numbers of one token, in one layer if the section has layers."""
        return self.per_token * self.itemsize


def sections(num_experts: int, top_k: int) -> Sequence[Section]:
    """The sections of a file, in their order; see ``docs/routing-file.md``."""
    ids = "B" if num_experts < 0xFF else "H"
    return (
        Section("ids", ids, True, top_k),
        Section("weights", "e", True, top_k),
        Section("margins", "e", True, 1),
        Section("entropies", "e", True, 1),
        Section("token_ids", "I", False, 1),
        Section("text_ends", "Q", False, 1),
        Section("slices", "H", False, 1),
        Section("windows", "I", False, 1),
    )


class Shape(msgspec.Struct, frozen=True):
    """The sizes of a ``routing.bin``, which fix the place of every number in it."""

    layers: tuple[int, ...]
    """Depth of every router."""
    layer_names: tuple[str, ...]
    num_experts: int
    top_k: int
    capacity: int
    """Tokens that there is room for."""

    def refuse_nonsense(self) -> None:
        """Check that every size is in range. ``BadRouting``: one is not."""
        for what, value, most in (
            ("layers", len(self.layers), MOST_LAYERS),
            ("num_experts", self.num_experts, MOST_EXPERTS),
            ("top_k", self.top_k, min(MOST_CHOICES, self.num_experts)),
            ("capacity", self.capacity, MOST_TOKENS),
        ):
            if not 0 < value <= most:
                raise BadRouting(f"{what} is {value:,}, expected 1 to {most:,}")
        if len(self.layer_names) != len(self.layers):
            raise BadRouting(f"{len(self.layer_names)} layer_names for {len(self.layers)} layers")


class Places:
    """The offsets of the numbers in a file of a given shape."""

    def __init__(self, shape: Shape) -> None:
        self._shape, self._offsets, at = shape, dict[str, int](), ALIGNMENT
        self.sections = {one.name: one for one in sections(shape.num_experts, shape.top_k)}
        for section in self.sections.values():
            self._offsets[section.name] = at
            at += (len(shape.layers) if section.per_layer else 1) * shape.capacity * section.row
            at += -at % ALIGNMENT
        self.text = at
        """Where the text begins."""
        self.empty_slot = (1 << 8 * self.sections["ids"].itemsize) - 1
        """The id that means no expert."""

    def at(self, name: str, layer: int, token: int) -> int:
        """Offset of the numbers of a token; ``layer`` counts in sections that have layers."""
        section = self.sections[name]
        before = layer * self._shape.capacity if section.per_layer else 0
        return self._offsets[name] + (before + token) * section.row


class Tables(msgspec.Struct, frozen=True, kw_only=True):
    """Tables that need a pass over all tokens; the probe computes them once.

    Shares are of (token, choice) pairs. Layers, slices and experts are in the order of the file.
    """

    counts: Sequence[Sequence[Sequence[int]]] = ()
    """Chosen experts: slice → layer → expert."""
    noise: Sequence[float] = ()
    """Per slice: the 99 % point of the absolute log2 ratio when pieces of text are assigned to the
    slices at random; of experts with ``FEWEST_EXPECTED`` pairs."""
    identity: Sequence[float | None] = ()
    """Per layer: share of the routing that the token identity alone explains, 0 … 1."""
    identity_noise: Sequence[float | None] = ()
    """The same with shuffled tokens: the share that chance alone explains."""
    lifts: Sequence[Sequence[Sequence[tuple[int, int, float]]]] = ()
    """Layer → expert → its most telling tokens: token id, count, lift."""


class Choice(msgspec.Struct, frozen=True):
    """What one router chose for one token."""

    experts: tuple[int, ...]
    """Chosen experts, the largest weight first; without empty slots."""
    weights: tuple[float, ...]
    margin: float
    """Selection score of the last choice less that of the first expert left out; NaN: unknown."""
    entropy: float
    """Of the router's probabilities, in nats; NaN: unknown."""
