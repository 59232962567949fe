"""Probes as data: the slices of a layer, and two probes compared.

``schema_version`` is 1: keys may be added. What was not measured is null. The bytes of a token that
is not text on its own are ``�``.
"""

from typing import Any

from microscope_tui.draw.findings import finite
from microscope_tui.extensions.anatomy.compare import Mismatch
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.extensions.anatomy.slices_text import NoTables, explained, slice_table
from microscope_tui.runlog import encode_record, safe_text

_MOST_CHARACTERS = 256
_MOST_SWAPS = 100


def slices_json(routing: Routing, layer: int) -> str:
    """The slices of one layer as JSON; ``why`` explains it if there are none."""
    shape = routing.shape
    identity, shuffled = explained(routing.tables, layer)
    document: dict[str, Any] = {
        "schema_version": 1,
        "model": routing.model,
        "layer": shape.layer_names[layer],
        "depth": shape.layers[layer],
        "num_experts": shape.num_experts,
        "top_k": shape.top_k,
        "num_tokens": routing.tokens,
        "identity": identity,
        "identity_shuffled": shuffled,
    }
    try:
        table = slice_table(routing.tables, layer, len(routing.slices), shape.num_experts)
    except NoTables as error:
        return encode_record({**document, "slices": [], "experts": [], "why": str(error)}).decode()
    slices = [
        {"slice": name, "choices": size, "noise": finite(noise)}
        for name, size, noise in zip(routing.slices, table.sizes, table.noise, strict=True)
    ]
    experts = [
        {
            "expert": row.expert,
            "share": row.share,
            "counts": [cell.count for cell in row.cells],
            "log2_ratios": [cell.ratio for cell in row.cells],
            "beyond_chance": [cell.beyond for cell in row.cells],
            "tokens": [
                {
                    "id": token_id,
                    "text": _text(routing.text_of_id(token_id)),
                    "count": count,
                    "lift": lift,
                }
                for token_id, count, lift in row.lifts
            ],
        }
        for row in table.rows
    ]
    return encode_record({**document, "slices": slices, "experts": experts}).decode()


def _text(text: bytes | None) -> str | None:
    return None if text is None else safe_text(text.decode("utf-8", "replace"), _MOST_CHARACTERS)


def mismatch_json(found: Mismatch, a: str, b: str) -> dict[str, Any]:
    """What ``compare --json`` prints; ``a`` and ``b`` are the names of the files."""
    return {
        "schema_version": 1,
        "a": a,
        "b": b,
        "tokens": found.tokens,
        "tokens_in_file": found.total,
        "tokens_routed": {"a": found.routed("A"), "b": found.routed("B")},
        "tokens_differing": found.tokens_differing,
        "copies": [
            {"file": file, "layer": layer, "of": other} for file, layer, other in found.copies
        ],
        "choices": found.compared,
        "choices_differing": found.differing,
        "share": found.share,
        "layers": [
            {
                "layer": layer.name,
                "depth": layer.depth,
                "choices": layer.compared,
                "differing": layer.differing,
                "share": layer.share,
                "tokens_routed": {file.lower(): found.total - layer.holes[file] for file in "AB"},
                "differing_first": layer.first,
                "b_is_late_by": layer.shift,
                "b_has_choices_of": found.moved.get(layer.name),
                "swaps": [
                    {"from": old, "to": new, "times": times}
                    for (old, new), times in layer.swaps.most_common(_MOST_SWAPS)
                ],
            }
            for layer in found.layers
        ],
        "margins_of": found.margins_of,
        "margins": [
            {"low": m.low, "high": m.high, "choices": m.compared, "differing": m.differing}
            for m in found.margins
        ],
    }
