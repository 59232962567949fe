"""The Trainers that people use, on real text: a layer made to collapse is reported, others not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset as Rows
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from microscope_tui.probe import MicroscopeCallback
from tests.probe.layers import records
from tests.probe.real_text import TEXT, Pieces, offset, small, tokenizer

ALONE, BROKEN = 105, 60
"""Steps: past the warm-up of 100, and past what a full collapse needs within it."""
pytestmark = pytest.mark.filterwarnings("default")  # of the trainers, not of the probe


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    common = {
        "output_dir": str(folder / "out"), "run_name": "run", "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-4,
        "per_device_train_batch_size": 4, "logging_steps": 20, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return common | options


def check(folder: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and report of ``moe-microscope check``."""
    command = [sys.executable, "-m", "microscope_tui.cli", "check", str(folder / "logs"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def collapsed(report: dict[str, Any]) -> list[list[str]]:
    """Routers of every finding of a collapse."""
    found = [finding for run in report["runs"] for finding in run["findings"]]
    return [finding["layers"] for finding in found if finding["rule"] == "COLLAPSE"]


@pytest.mark.parametrize(
    ("family", "broken"), [("mixtral", False), ("mixtral", True), ("qwen3_moe", True)]
)
def test_the_trainer_reports_the_layer_that_was_made_to_collapse_and_no_other(
    family: str, broken: bool, tmp_path: Path
) -> None:
    model = small(family)
    if broken:
        offset(model, layer=1)
    steps = BROKEN if broken else ALONE
    arguments = TrainingArguments(**settings(tmp_path, max_steps=steps))
    callbacks = [MicroscopeCallback(tmp_path / "logs")]
    Trainer(model, arguments, train_dataset=Pieces(), callbacks=callbacks).train()
    code, report = check(tmp_path)
    assert collapsed(report) == ([["L1"]] if broken else [])
    assert code == (2 if broken else 0)


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("broken", [False, True])
def test_sft_with_lora_reports_the_layer_that_was_made_to_collapse_and_no_other(
    broken: bool, tmp_path: Path
) -> None:
    model = small("mixtral")
    if broken:
        offset(model, layer=0)
    steps = BROKEN if broken else ALONE
    arguments = SFTConfig(**settings(tmp_path, max_steps=steps, max_length=32))
    rows = Rows.from_list([{"text": TEXT[at : at + 60]} for at in range(0, 20_000, 60)])
    SFTTrainer(
        model, arguments, train_dataset=rows, processing_class=tokenizer(), peft_config=lora(),
        callbacks=[MicroscopeCallback(tmp_path / "logs")],
    ).train()  # fmt: skip
    code, report = check(tmp_path)
    assert collapsed(report) == ([["L0"]] if broken else [])
    assert code == (2 if broken else 0)


class Calls:
    """Counts the tokens of the forward passes of a model that are run with gradients."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.with_gradients: list[int] = []
        self.without = 0
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not (torch.is_grad_enabled() and module.training):
            self.without += 1
            return
        mask = kwargs.get("attention_mask")
        tokens = kwargs["input_ids"].numel() if mask is None else int(mask.sum())
        self.with_gradients.append(tokens)


def assert_counted_once(calls: Calls, folder: Path) -> None:
    lines = records(folder / "logs" / "run")
    assert [line["tokens"] for line in lines] == calls.with_gradients
    for line in lines:
        assert "incomplete" not in line
        assert [sum(row) for row in line["tokens_per_expert"]] == [2 * line["tokens"]] * 2


def test_dpo_with_lora_counts_the_policy_and_not_the_reference(tmp_path: Path) -> None:
    model = small("mixtral")
    calls = Calls(model)
    rows = Rows.from_list(
        [{"prompt": TEXT[i : i + 20], "chosen": TEXT[i + 20 : i + 50], "rejected": TEXT[i : i + 25]}
         for i in range(0, 1600, 50)]
    )  # fmt: skip
    DPOTrainer(
        model,
        args=DPOConfig(**settings(tmp_path, max_steps=3, max_length=64)),
        train_dataset=rows,
        processing_class=tokenizer(),
        peft_config=lora(),
        callbacks=[MicroscopeCallback(tmp_path / "logs")],
    ).train()
    assert calls.without >= 3
    assert_counted_once(calls, tmp_path)


def test_grpo_counts_the_update_and_not_what_it_generates_and_scores(tmp_path: Path) -> None:
    model = small("mixtral")
    calls = Calls(model)
    rows = Rows.from_list([{"prompt": TEXT[i : i + 30]} for i in range(0, 1600, 50)])
    GRPOTrainer(
        model,
        reward_funcs=lambda completions, **kw: [float(len(c)) for c in completions],
        args=GRPOConfig(
            **settings(tmp_path, max_steps=2), num_generations=4, max_completion_length=8, beta=0.1
        ),
        train_dataset=rows,
        processing_class=tokenizer(),
        peft_config=lora(),
        callbacks=[MicroscopeCallback(tmp_path / "logs")],
    ).train()
    assert calls.without >= 2
    assert_counted_once(calls, tmp_path)
