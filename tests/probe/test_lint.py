"""Settings that spoil routers are reported at attach, once, and are in the log."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.families.tiny import build
from microscope_tui.probe import attach
from tests.probe.layers import records


def causes(model: Any, folder: Path, caplog: Any) -> str:
    """The LINT alerts of a log of two steps, which are those that were reported before them."""
    ids = torch.randint(3, 90, (2, 12))
    with caplog.at_level(logging.INFO, "microscope_tui.probe"), attach(model, folder) as probe:
        reported = [one for one in caplog.messages if " LINT: " in one]
        for _ in range(2):
            model(input_ids=ids).logits.square().mean().backward()
            probe.step()
    assert [one for one in caplog.messages if " LINT: " in one] == reported
    alerts = [e["values"] for e in records(folder, "event") if e["event"] == "alert"]
    verdicts = [a["verdict"].partition(" since ")[0] for a in alerts if a["rule"] == "LINT"]
    assert len(reported) == len(verdicts)
    assert all(any(verdict in one for one in reported) for verdict in verdicts)
    return "\n".join(verdicts)


@pytest.mark.parametrize(
    ("family", "changes", "cause"),
    [
        ("mixtral", {"output_router_logits": False}, "aux not applied"),
        ("mixtral", {"output_router_logits": True}, "layers pooled"),
        ("mixtral", {"output_router_logits": True, "num_experts_per_tok": 1}, "top-1 normalised"),
        ("gemma4", {}, "no balancing"),
        ("deepseek_v3", {}, "bias not updated"),
    ],
)
def test_a_setting_that_spoils_routers_is_reported_once(
    family: str, changes: dict[str, Any], cause: str, tmp_path: Path, caplog: Any
) -> None:
    assert cause in causes(build(family, **changes), tmp_path, caplog)
