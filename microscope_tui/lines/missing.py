"""Why a part of a screen is empty, and what would fill it."""

from microscope_tui.lines import words
from microscope_tui.watch import LayerView, RunView

NO_ENTROPY = "not measured (docs/probe.md)"


def no_counts(view: RunView) -> str:
    """Why no layer, or one of them, has loads per expert."""
    if view.counts_step is not None:
        return "no counts in this layer"
    if view.run is not None and view.run.counts == "none":
        return "no counts: only summaries; the probe writes counts (2 lines: docs/probe.md)"
    return "no counts in the log; the probe writes them (2 lines: docs/probe.md)"


def no_balance(layer: LayerView) -> tuple[str, str]:
    """Why a layer has no collapse index, in a word or two and in a sentence."""
    router = layer.router
    if not router.num_experts:
        return "E unknown", "unknown E: use --num-experts"
    if not router.top_k:
        return "k unknown", "top_k is unknown: use --top-k"
    if router.num_experts <= router.top_k:
        return "all chosen", "every token chooses all experts"
    return "no load", "not measured: it needs counts"


def size(layer: LayerView) -> str:
    """``8 experts, top-2``."""
    experts = f"{layer.router.num_experts:,} experts" if layer.router.num_experts else "experts ?"
    return f"{experts}, {words.choices(layer.router.top_k)}"
