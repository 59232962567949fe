"""The run record of a log, field by field."""

from typing import Any

from microscope_tui.runlog.json_values import integer, number
from microscope_tui.runlog.records import (
    FORMAT_VERSION,
    BadLine,
    RouterInfo,
    RunRecord,
    UnknownFormat,
)
from microscope_tui.runlog.safe_text import safe_text

MAX_ROUTERS = 4096


def decode_run(fields: dict[str, Any]) -> RunRecord:
    """The header of a run.

    Raises:
        BadLine: it does not name the routers.
        UnknownFormat: it has another format version.
    """
    version = fields.get("format_version")
    if version != FORMAT_VERSION:
        raise UnknownFormat(
            f"format_version is {safe_text(repr(version), 20)}, this microscope reads "
            f"{FORMAT_VERSION}: update moe-microscope, or write the log with a matching version"
        )
    model = fields.get("model")
    model = model if isinstance(model, dict) else {}
    balance = fields.get("balance")
    source = fields.get("source")
    config = fields.get("config")
    config = config if isinstance(config, dict) else {}
    return RunRecord(
        run=safe_text(fields.get("run") or "", 120),
        routers=_routers(model),
        time=number(fields.get("time")),
        planned_steps=integer(fields.get("planned_steps")),
        resumed_at_step=integer(fields.get("resumed_at_step")),
        profile=safe_text(fields.get("profile") or "pretrain", 20),
        model_name=safe_text(model.get("name") or "", 60),
        dtype=safe_text(config.get("dtype") or "", 20),
        sequence_length=integer(config.get("seq_len")),
        capacity_factor=number(model.get("capacity_factor")),
        score_function=safe_text(model.get("score_function") or "", 20),
        norm_top_k=value if isinstance(value := model.get("norm_top_k"), bool) else None,
        balance=_balance(balance if isinstance(balance, dict) else {}),
        counts=safe_text((source if isinstance(source, dict) else {}).get("counts") or "exact", 20),
        expert_parallel_size=max(1, integer(fields.get("expert_parallel_size")) or 1),
    )


def _balance(fields: dict[str, Any]) -> dict[str, Any]:
    """The settings that the advice uses: the method by name, the rest as numbers (false is 0)."""
    numbers = {
        safe_text(key, 40): float(value) if isinstance(value, bool) else number(value)
        for key, value in fields.items()
    }
    return numbers | {"method": safe_text(fields.get("method") or "", 20)}


def _routers(model: dict[str, Any]) -> tuple[RouterInfo, ...]:
    depths = model.get("layers")
    if not isinstance(depths, list) or len(depths) > MAX_ROUTERS:
        raise BadLine("model.layers is missing or not a list: it names the depth of every router")
    names = model.get("layer_names")
    names = names if isinstance(names, list) and len(names) == len(depths) else [None] * len(depths)

    def per_router(key: str, index: int) -> int:
        value = model.get(key)
        if isinstance(value, list):
            value = value[index] if index < len(value) else None
        return min(max(0, integer(value) or 0), 1_000_000)

    return tuple(
        RouterInfo(
            name=safe_text(f"L{integer(depth) or 0}" if name is None else name, 12),
            depth=integer(depth) or 0,
            num_experts=per_router("num_experts", index),
            top_k=per_router("top_k", index),
        )
        for index, (depth, name) in enumerate(zip(depths, names, strict=True))
    )
