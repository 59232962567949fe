"""Two probes compared, as data."""

from typing import Any

from microscope_tui.routing import Mismatch

_MOST_SWAPS = 100


def mismatch_json(found: Mismatch, a: str, b: str) -> dict[str, Any]:
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
                "differing_first": layer.first,
                "b_is_late_by": layer.shift,
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
