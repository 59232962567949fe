"""Settings that spoil routers are told at attach, once, and are in the log."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.families.tiny import build
from microscope_tui.probe import attach


def lint_verdicts(model: Any, folder: Path, caplog: Any) -> list[str]:
    """Causes in the log after two steps, which are those that were said before the first."""
    ids = torch.randint(3, 90, (2, 12))
    with caplog.at_level(logging.INFO, "microscope_tui.probe"), attach(model, folder) as probe:
        first = said(caplog)
        for _ in range(2):
            model(input_ids=ids).logits.square().mean().backward()
            probe.step()
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    alerts = [e["values"] for e in entries if e.get("event") == "alert"]
    causes = [
        a["verdict"].partition(": ")[2].partition(" since ")[0]
        for a in alerts
        if a["rule"] == "LINT"
    ]
    assert said(caplog) == first
    assert all(any(cause in message for message in first) for cause in causes)
    assert len(first) == len(causes)
    return causes


def said(caplog: Any) -> list[str]:
    return [r.message for r in caplog.records if ": LINT: " in r.message]


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
def test_a_setting_that_spoils_routers_is_told_once(
    family: str, changes: dict[str, Any], cause: str, tmp_path: Path, caplog: Any
) -> None:
    assert any(
        cause in verdict for verdict in lint_verdicts(build(family, **changes), tmp_path, caplog)
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT
def test_routers_that_lora_leaves_out_are_told(tmp_path: Path, caplog: Any) -> None:
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(build("mixtral", output_router_logits=True), config)
    assert any("router frozen" in verdict for verdict in lint_verdicts(model, tmp_path, caplog))


def test_trained_routers_are_not_called_frozen(tmp_path: Path, caplog: Any) -> None:
    verdicts = lint_verdicts(build("mixtral", output_router_logits=True), tmp_path, caplog)
    assert not any("frozen" in verdict or "not applied" in verdict for verdict in verdicts)


def test_settings_of_training_are_not_told_of_a_finished_model(tmp_path: Path) -> None:
    model = build("mixtral", output_router_logits=False).eval()
    with attach(model, tmp_path, mode="eval") as probe:
        model(input_ids=torch.randint(3, 90, (2, 12)))
        probe.step()
    assert '"alert"' not in (tmp_path / "metrics.jsonl").read_text()
