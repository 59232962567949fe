"""Writes ``routing.bin`` while a probe runs, batch by batch, and its tables at the end."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from microscope_tui.extensions.anatomy import tables
from microscope_tui.extensions.anatomy.layout import Shape, Tables
from microscope_tui.extensions.anatomy.routing_file import RoutingWriter
from microscope_tui.extensions.anatomy.texts import Window
from microscope_tui.probe.counter import Traced
from microscope_tui.probe.held_out import noise_level
from microscope_tui.probe.sites import Site
from microscope_tui.probe.step_sums import Key, Row

_MOST_TABLE_ROWS = 1_000_000
"""Most telling tokens in all: the tables are in the header, which a reader decodes at once."""


class TraceFile:
    """One ``routing.bin``; a batch is in it completely or not at all."""

    def __init__(
        self,
        path: Path,
        rows: Sequence[Row],
        sites: Sequence[Site],
        first: Mapping[Key, Traced],
        capacity: int,
        **about: Any,
    ) -> None:
        """Open the file.

        Args:
            path: Of the trace; it appears when it is finished.
            rows: Rows of the run log; those that ``first`` lacks see no text and are left out.
            sites: The routers of the model, in forward order.
            first: The choices of the first batch.
            capacity: Tokens that the file has room for.
            about: ``slices``, ``model`` and ``dtype`` of ``RoutingWriter``.

        Raises:
            BadRouting: the model has too many layers, experts or choices for the format.
            OSError: the file cannot be written.
        """
        rows = [row for row in rows if (row.place, row.number) in first]
        self.keys: list[Key] = [(row.place, row.number) for row in rows]
        shape = Shape(
            layers=tuple(sites[row.place].depth for row in rows),
            layer_names=tuple(row.name for row in rows),
            num_experts=max(sites[row.place].num_experts for row in rows),
            top_k=max(first[key].ids_TK.shape[1] for key in self.keys),
            capacity=capacity,
        )
        self.writer = RoutingWriter(path, shape, **about)
        self._slices = list(about["slices"])
        sections = self.writer.places.sections.values()
        self._types = {one.name: np.dtype(f"<{one.code}") for one in sections}
        self.tokens = 0
        """Tokens whose choices are written in all layers."""
        self._windows = 0

    def add(self, batch: Sequence[Window], traced: Mapping[Key, Traced]) -> None:
        """Write one batch.

        Raises:
            ValueError: a router did not see every token of it.
            OSError: the disk is full.
        """
        count = sum(len(window.ids) for window in batch)
        for key, name in zip(self.keys, self.writer.shape.layer_names, strict=True):
            seen = len(traced[key].ids_TK) if key in traced else 0
            if seen != count:
                raise ValueError(f"{name} saw {seen:,} of {count:,} tokens of a batch")
        numbers = [self._windows + n for n, one in enumerate(batch) for _ in one.ids]
        first = self.writer.put_tokens(
            [token for one in batch for token in one.ids],
            [text for one in batch for text in one.texts],
            [number for one in batch for number in one.slices],
            numbers,
        )
        for layer, key in enumerate(self.keys):
            for section, values in self._packed(traced[key]).items():
                self.writer.put(section, layer, first, values)
        self.tokens += count
        self._windows += len(batch)

    def _packed(self, one: Traced) -> dict[str, bytes]:
        k, empty = self.writer.shape.top_k, self.writer.places.empty_slot
        ids_TK = np.full((len(one.ids_TK), k), empty, dtype=np.int64)
        weights_TK = np.full((len(one.ids_TK), k), np.nan, dtype=np.float32)
        ids_TK[:, : one.ids_TK.shape[1]] = one.ids_TK.cpu().numpy()
        ids_TK[ids_TK < 0] = empty
        weights_TK[:, : one.ids_TK.shape[1]] = one.weights_TK.cpu().numpy()
        arrays: dict[str, Any] = {
            "ids": ids_TK,
            "weights": weights_TK,
            "margins": one.margin_T.cpu().numpy(),
            "entropies": one.entropy_T.cpu().numpy(),
        }
        with np.errstate(over="ignore"):  # beyond half precision: infinite
            return {name: row.astype(self._types[name]).tobytes() for name, row in arrays.items()}

    def tables(self, progress: Callable[[int, int], None]) -> Tables:
        """``progress`` is called with finished layers and all layers."""
        shape = self.writer.shape
        E, L, S = shape.num_experts, len(shape.layers), len(self._slices)
        vocabulary = tables.Vocabulary(self._read("token_ids", 0))
        slices_T = self._read("slices", 0).astype(np.int64)
        most = max(1, min(tables.MOST_TELLING, _MOST_TABLE_ROWS // (L * E)))
        counts: list[list[list[int]]] = [[] for _ in range(S)]
        ratios: list[list[Any]] = [[] for _ in range(S)]
        identity, shuffled, lifts = [], [], []
        for layer in range(L):
            progress(layer, L)
            ids_TK = self._read("ids", layer).reshape(-1, shape.top_k)
            for place, row_E in enumerate(tables.count_slices(ids_TK, slices_T, S, E)):
                counts[place].append(row_E.tolist())
            if S > 1:
                for place, found in enumerate(tables.shuffled_ratios(ids_TK, slices_T, S, E)):
                    ratios[place].append(found)
            identity.append(tables.identity_share(vocabulary, ids_TK, E))
            shuffled.append(tables.identity_share(vocabulary, ids_TK, E, shuffled=True))
            lifts.append(tables.telling_tokens(vocabulary, ids_TK, E, most))
        noise = [0.0] * S
        if S > 1:
            noise = [noise_level(np.concatenate(rows)) for rows in ratios]
        return Tables(
            counts=counts, noise=noise, identity=identity, identity_noise=shuffled, lifts=lifts
        )

    def _read(self, name: str, layer: int) -> Any:
        data = self.writer.get(name, layer, self.tokens)
        return np.frombuffer(data, dtype=self._types[name])
