"""The header of a run that another tool wrote: its routers, and what their counts are worth."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from microscope_tui.runlog import FORMAT_VERSION, safe_text
from microscope_tui.sources.keys import Rule
from microscope_tui.sources.reader import Record

NUM_EXPERTS = (
    "num_experts",
    "n_routed_experts",
    "num_local_experts",
    "moe_num_experts",
    "num_moe_experts",
)
TOP_K = (
    "top_k",
    "num_experts_per_tok",
    "moe_router_topk",
    "num_experts_per_token",
    "experts_per_token",
    "moe_top_k",
    "moe_topk",
)
_MOST_DEPTH = 6
_MOST_VALUES = 20_000


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user says about a source; it wins over what the source says."""

    source: str = ""
    """Name of its format; by default it is recognised."""
    rules: tuple[Rule, ...] = ()
    """Which key is which quantity, before the known ones."""
    num_experts: int | None = None
    top_k: int | None = None
    profile: str = ""
    pipeline_parallel: int = 1
    """Pipeline stages of a Megatron run."""


DEFAULT = Asked()


def run_record(
    run: str,
    depths: Sequence[int],
    experts: Sequence[int],
    top_k: int | None,
    *,
    writer: str,
    counts: str,
    names: Sequence[str] | None = None,
    profile: str = "pretrain",
    time: float | None = None,
    planned_steps: int | None = None,
    note: str = "",
    layer_order: str | None = None,
) -> Record:
    """The ``run`` record of a source.

    Args:
        depths: of every router, in forward order.
        experts: number of experts of every router; 0 where unknown.
        top_k: choices per token; ``None`` if nothing says so.
        writer: what wrote the source, for example ``wandb``.
        counts: ``exact``, ``top1``, ``shares``, ``local_rank`` or ``none``.
        names: shown names of the routers, by default ``L{depth}``.
        profile: ``pretrain``, ``finetune`` or ``eval``.
        note: what limits these counts, in a few words.
        layer_order: ``unknown`` if the routers may be listed in another order than in the model.
    """
    model: Record = {
        "layers": list(depths),
        "layer_names": list(names) if names is not None else [f"L{depth}" for depth in depths],
        "num_experts": experts[0] if len(set(experts)) == 1 else list(experts),
        "top_k": top_k,  # null: unknown
    }
    record: Record = {
        "kind": "run",
        "format_version": FORMAT_VERSION,
        "run": safe_text(run, 120),
        "time": time,
        "planned_steps": planned_steps,
        "profile": profile,
        "model": model,
        "source": {"writer": writer, "counts": counts} | ({"note": note} if note else {}),
    }
    if layer_order is not None:
        record["source"]["layer_order"] = layer_order
    return {key: value for key, value in record.items() if value is not None}


def config_number(config: Mapping[str, object], names: Sequence[str]) -> int | None:
    """The first positive integer that one of ``names`` has in a nested configuration.

    Keys may be nested (``{"model": {"num_experts": 8}}``), dotted (``model.num_experts``) or spelt
    with hyphens; W&B wraps values as ``{"value": …}``.
    """
    left = _MOST_VALUES
    found: dict[str, int] = {}
    todo: list[tuple[Mapping[object, object], int]] = [(config, 0)]  # type: ignore[list-item]
    while todo and left > 0:
        level, depth = todo.pop()
        for key, value in level.items():
            left -= 1
            if isinstance(value, Mapping) and set(value) <= {"value", "desc"} and "value" in value:
                value = value["value"]
            name = re.split(r"[./]", str(key)[-200:])[-1].replace("-", "_")
            if type(value) is int and 0 < value < 1 << 20:
                found.setdefault(name, value)
            elif isinstance(value, Mapping) and depth < _MOST_DEPTH:
                todo.append((value, depth + 1))
    return next((found[name] for name in names if name in found), None)
