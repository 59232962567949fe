"""The Trainers that people use, on real text: a layer made to collapse is reported, others not."""

import json
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
from tests.probe.real_text import TEXT, Pieces, offset, small_mixtral, tokenizer

ALONE, BROKEN = 105, 60
"""Steps: past the warm-up of 100, and past what a full collapse needs within it."""
LOGGED = {
    "dpo": {"loss", "rewards/margins", "rewards/accuracies"},
    "grpo": {"loss", "reward", "kl", "entropy", "completions/mean_length"},
}
"""Some of what these trainers log."""
pytestmark = pytest.mark.filterwarnings("default")  # of the trainers, not of the probe


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    common = {
        "output_dir": str(folder / "out"), "run_name": "run", "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-4,
        "per_device_train_batch_size": 4, "logging_steps": 20, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return common | options


def collapsed(microscope: Any, folder: Path) -> tuple[int, list[list[str]]]:
    """Exit code of ``check``, and the routers of every finding of a collapse."""
    done = microscope("check", folder / "logs", "--json")
    found = [finding for run in json.loads(done.stdout)["runs"] for finding in run["findings"]]
    return done.returncode, [one["layers"] for one in found if one["rule"] == "COLLAPSE"]


def train(folder: Path, model: Any, steps: int, on_collapse: str = "log") -> Trainer:
    trainer = Trainer(
        model,
        TrainingArguments(**settings(folder, max_steps=steps)),
        train_dataset=Pieces(),
        callbacks=[MicroscopeCallback(folder / "logs", on_collapse=on_collapse)],
    )
    trainer.train()
    return trainer


def test_a_sound_training_is_healthy(tmp_path: Path, microscope: Any) -> None:
    train(tmp_path, small_mixtral(), ALONE)
    assert collapsed(microscope, tmp_path) == (0, [])


def test_a_collapse_is_reported_in_its_layer_and_stops_the_training_if_requested(
    tmp_path: Path, microscope: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_mixtral()
    offset(model, layer=1)
    trained = train(tmp_path, model, BROKEN, on_collapse="stop")
    assert collapsed(microscope, tmp_path) == (2, [["L1"]])
    assert trained.state.global_step < BROKEN
    assert records(tmp_path / "logs" / "run", "event")[-1]["reason"] == "collapse"
    texts = [entry["moe_alert"] for entry in trained.state.log_history if "moe_alert" in entry]
    assert sum(text.startswith("CRIT COLLAPSE: Router collapse in L1") for text in texts) == 1
    assert ": CRIT COLLAPSE: Router collapse in L1 since step " in caplog.text
    assert "on_collapse='stop': the critical COLLAPSE ends the training" in caplog.text


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def test_sft_with_lora_reports_the_collapsed_layer_and_no_other_and_continues(
    tmp_path: Path, microscope: Any
) -> None:
    model = small_mixtral()
    offset(model, layer=0)
    rows = Rows.from_list([{"text": TEXT[at : at + 60]} for at in range(0, 20_000, 60)])
    SFTTrainer(
        model, SFTConfig(**settings(tmp_path, max_steps=BROKEN, max_length=32)),
        train_dataset=rows, processing_class=tokenizer(), peft_config=lora(),
        callbacks=[MicroscopeCallback(tmp_path / "logs")],
    ).train()  # fmt: skip
    assert collapsed(microscope, tmp_path) == (2, [["L0"]])
    assert len(records(tmp_path / "logs" / "run")) == BROKEN
    assert records(tmp_path / "logs" / "run", "event")[-1]["reason"] == "finished"


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_only_the_update_of_the_policy_is_counted(kind: str, tmp_path: Path) -> None:
    """Not the reference model, and not what GRPO generates and scores."""
    model = small_mixtral()
    with_gradients, without = [], []

    def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        tokens = kwargs["input_ids"].numel() if mask is None else int(mask.sum())
        is_update = torch.is_grad_enabled() and module.training
        (with_gradients if is_update else without).append(tokens)

    model.register_forward_pre_hook(note, with_kwargs=True)
    texts = [TEXT[at : at + 50] for at in range(0, 1600, 50)]
    common: dict[str, Any] = {"processing_class": tokenizer(), "peft_config": lora()}
    common["callbacks"] = [MicroscopeCallback(tmp_path / "logs")]
    if kind == "dpo":
        args = DPOConfig(**settings(tmp_path, max_steps=2, max_length=64, logging_steps=1))
        pairs = [{"prompt": t[:20], "chosen": t[20:], "rejected": t[:25]} for t in texts]
        DPOTrainer(model, args=args, train_dataset=Rows.from_list(pairs), **common).train()
    else:
        sizes = {"num_generations": 4, "max_completion_length": 8, "beta": 0.1}
        GRPOTrainer(
            model,
            reward_funcs=lambda completions, **kw: [float(len(c)) for c in completions],
            args=GRPOConfig(**settings(tmp_path, max_steps=2, logging_steps=1), **sizes),
            train_dataset=Rows.from_list([{"prompt": text[:30]} for text in texts]),
            **common,
        ).train()
    assert len(without) >= 2
    folder = tmp_path / "logs" / "run"
    assert records(folder, "run")[0]["loss_kind"] == "outputs"
    logged = [event for event in records(folder, "event") if event["event"] == "numbers"]
    assert {name for event in logged for name in event["values"]} >= LOGGED[kind]
    lines = records(folder)
    assert [line["tokens"] for line in lines] == with_gradients
    for line in lines:
        assert "incomplete" not in line
        assert [sum(row) for row in line["tokens_per_expert"]] == [2 * line["tokens"]] * 2
