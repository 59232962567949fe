"""What two logs of the same run must have in common, and what may differ."""

from __future__ import annotations

from typing import Any

Log = list[dict[str, Any]]


def story(log: Log) -> Log:
    """All records after the last header, without clock times, speeds and memory."""
    head = max(place for place, record in enumerate(log) if record["kind"] == "run")
    return [
        {
            key: value
            for key, value in record.items()
            if key not in ("time", "tokens_per_s") and not key.endswith(("_s", "_bytes"))
        }
        for record in log[head + 1 :]
    ]


def from_step(log: Log, first: int) -> Log:
    """The records of a story from step ``first`` on, wherever its checkpoints are."""
    return [
        {**record, "values": {**record.get("values", {}), "path": None}}
        for record in log
        if record["step"] >= first
    ]
