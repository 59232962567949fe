"""The callback in a real Hugging Face Trainer, on small random models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from benchmarks.families.tiny import build
from microscope_tui.probe import MicroscopeCallback
from tests.probe.layers import records

LENGTHS = [12, 9, 12, 5, 8, 12, 3, 12]


class Texts(Dataset[dict[str, Tensor]]):
    """Padded sequences of different lengths, always the same."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        made = torch.Generator().manual_seed(index)
        ids_S = torch.randint(3, 90, (12,), generator=made)
        mask_S = torch.arange(12) < LENGTHS[index % len(LENGTHS)]
        labels_S = ids_S.where(mask_S, -100)
        return {"input_ids": ids_S, "attention_mask": mask_S.long(), "labels": labels_S}


def trainer(folder: Path, family: str = "mixtral", **options: Any) -> Trainer:
    callback = {
        name: options.pop(name) for name in ("on_collapse", "every", "run") if name in options
    }
    model = options.pop("model", None) or build(family, output_router_logits=True)
    args: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(
        model,
        TrainingArguments(**(args | options)),
        train_dataset=Texts(),
        eval_dataset=Texts(),
        callbacks=[MicroscopeCallback(folder / "logs", **callback)],
    )


def losses(trained: Trainer) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_and_its_auxiliary_term_are_kept_apart(
    family: str, accumulation: int, tmp_path: Path
) -> None:
    trained = trainer(tmp_path, family, gradient_accumulation_steps=accumulation)
    trained.train()
    weight = trained.model.config.router_aux_loss_coef
    lines = records(tmp_path / "logs" / "out")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line, reported in zip(lines, losses(trained), strict=True):
        # transformers adds the auxiliary term of every micro-batch to its share of the loss
        aux = line["losses"]["aux"] * weight * accumulation
        assert line["loss"] + aux == pytest.approx(reported, abs=2e-4)
        assert line["losses"]["aux"] >= 1.9  # floor k = 2, without its weight
        assert line["learning_rate"] > 0
        assert all(norm > 0 for norm in line["router"]["grad_norm"])


def test_counts_are_those_of_the_real_tokens_of_the_step(tmp_path: Path) -> None:
    trained = trainer(tmp_path, gradient_accumulation_steps=2)
    trained.train()
    for line in records(tmp_path / "logs" / "out"):
        assert [sum(row) for row in line["tokens_per_expert"]] == [2 * line["tokens"]] * 4
        assert 8 * 3 <= line["tokens"] < 8 * 12


def test_the_run_is_named_by_the_callback_else_the_trainer(tmp_path: Path) -> None:
    trainer(tmp_path, run="mine", max_steps=1).train()
    trainer(tmp_path, run_name="theirs", max_steps=1).train()
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["mine", "theirs"]
    assert records(tmp_path / "logs" / "mine", "event")[-1]["reason"] == "finished"


def test_evaluation_is_an_event_and_not_counted(tmp_path: Path) -> None:
    trained = trainer(tmp_path, eval_strategy="steps", eval_steps=2)
    trained.train()
    folder = tmp_path / "logs" / "out"
    evals = [event for event in records(folder, "event") if event["event"] == "eval"]
    assert [event["step"] for event in evals] == [2, 4]
    assert all(line["tokens"] < 4 * 12 for line in records(folder))


def test_a_resumed_training_continues_the_log_and_its_judgement(
    tmp_path: Path, caplog: Any
) -> None:
    whole = trainer(tmp_path / "whole", max_steps=6)
    whole.train()
    first = trainer(tmp_path / "cut", max_steps=6, save_strategy="steps", save_steps=3)
    first.train()
    kept = json.loads(
        (tmp_path / "cut" / "out" / "checkpoint-3" / "trainer_state.json").read_text()
    )
    assert kept["stateful_callbacks"]["MicroscopeCallback"]["attributes"]["kept"]
    checkpoint = str(tmp_path / "cut" / "out" / "checkpoint-3")
    # Of these families the Trainer restores all but the MoE weights.
    model = type(first.model).from_pretrained(checkpoint)
    trainer(tmp_path / "cut", max_steps=6, model=model).train(resume_from_checkpoint=checkpoint)
    assert "not those of the checkpoint" not in caplog.text
    folder = tmp_path / "cut" / "logs" / "out"
    assert [run["resumed_at_step"] for run in records(folder, "run")] == [None, 4]
    lines = records(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    uninterrupted = records(tmp_path / "whole" / "logs" / "out")[-3:]
    for line, expected in zip(lines[-3:], uninterrupted, strict=True):
        for key in ("loss", "tokens", "tokens_per_expert", "router", "losses", "learning_rate"):
            assert line[key] == expected[key]


@pytest.mark.parametrize("forgotten", ["gate", "experts"])
def test_a_resumed_training_without_its_experts_or_routers_is_told(
    forgotten: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    first = trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=2)
    first.train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    model = type(first.model).from_pretrained(checkpoint)
    for name, weight in model.named_parameters():
        if f"layers.1.mlp.{forgotten}" in name:
            weight.data.mul_(1.01)
    monkeypatch.setattr(Trainer, "_load_from_checkpoint", lambda *args, **more: None)
    trainer(tmp_path, max_steps=3, model=model).train(resume_from_checkpoint=checkpoint)
    assert "the MoE weights of L1 are not those of the checkpoint" in caplog.text


@pytest.mark.parametrize("what", ["log", "stop"])
def test_a_collapse_is_reported_in_its_layer_and_stops_where_asked(
    what: str, tmp_path: Path
) -> None:
    model = build("mixtral", output_router_logits=True)
    router = model.model.layers[2].mlp.gate
    push = torch.zeros(8)
    push[:2] = 50.0  # a fixed offset on two rows of one router

    def offset(module: Any, args: Any, output: Any) -> Any:
        logits_TE = output[0] + push
        weights_TK, ids_TK = logits_TE.softmax(-1).topk(2, dim=-1)
        return logits_TE, weights_TK, ids_TK

    router.register_forward_hook(offset)
    trained = trainer(tmp_path, model=model, on_collapse=what, max_steps=125)
    trained.train()
    folder = tmp_path / "logs" / "out"
    alerts = [e["values"] for e in records(folder, "event") if e["event"] == "alert"]
    assert next(a["layers"] for a in alerts if a["rule"] == "COLLAPSE") == ["L2"]
    end = records(folder, "event")[-1]
    assert end["reason"] == ("collapse" if what == "stop" else "finished")
    assert (trained.state.global_step < 125) == (what == "stop")
    told = [entry["moe_alert"] for entry in trained.state.log_history if "moe_alert" in entry]
    assert any(text.startswith("COLLAPSE: Router collapse in L2") for text in told)


def test_another_word_for_on_collapse_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 'log' or 'stop'"):
        MicroscopeCallback("logs", on_collapse="checkpoint")
