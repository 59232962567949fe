"""The callback in a real Hugging Face Trainer, on small random models."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerState, TrainingArguments

from benchmarks.families.tiny import build
from microscope_tui.probe import MicroscopeCallback
from tests.probe.layers import ROUTERS, Model, records, tokens

LENGTHS = [12, 9, 12, 5, 8, 12, 3, 12]


class Texts(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        made = torch.Generator().manual_seed(index)
        ids_S = torch.randint(3, 90, (12,), generator=made)
        mask_S = torch.arange(12) < LENGTHS[index % len(LENGTHS)]
        labels_S = ids_S.where(mask_S, -100)
        return {"input_ids": ids_S, "attention_mask": mask_S.long(), "labels": labels_S}


def trainer(folder: Path, model: Any = None, **options: Any) -> Trainer:
    args: dict[str, Any] = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4, "max_steps": 4,
        "report_to": [], "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-3,
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return Trainer(
        model or build("mixtral", output_router_logits=True),
        TrainingArguments(**(args | options)),
        train_dataset=Texts(),
        eval_dataset=Texts(),
        callbacks=[MicroscopeCallback(folder / "logs")],
    )


@pytest.mark.parametrize(("family", "accumulation"), [("mixtral", 2), ("qwen3_moe", 1)])
def test_a_line_has_the_real_tokens_of_its_step_and_the_loss_without_its_auxiliary_term(
    family: str, accumulation: int, tmp_path: Path
) -> None:
    model = build(family, output_router_logits=True)
    trained = trainer(tmp_path, model, gradient_accumulation_steps=accumulation)
    trained.train()
    losses = [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
    lines = records(tmp_path / "logs" / "out")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line, reported in zip(lines, losses, strict=True):
        # transformers adds the auxiliary term of every micro-batch to its share of the loss
        aux = line["losses"]["aux"] * model.config.router_aux_loss_coef * accumulation
        assert line["loss"] + aux == pytest.approx(reported, abs=2e-4)
        assert line["losses"]["aux"] >= 1.9  # floor k = 2, without its weight
        assert line["learning_rate"] > 0
        assert all(norm > 0 for norm in line["router"]["grad_norm"])
        assert [sum(row) for row in line["tokens_per_expert"]] == [2 * line["tokens"]] * 4
        assert 4 * accumulation * 3 <= line["tokens"] < 4 * accumulation * 12


@pytest.mark.parametrize(
    ("run", "run_name", "name"),
    [("mine", "theirs", "mine"), (None, "theirs", "theirs"), (None, None, "out")],
)
def test_the_run_is_named_by_the_callback_else_the_trainer_else_its_folder(
    run: str | None, run_name: str | None, name: str, tmp_path: Path
) -> None:
    callback = MicroscopeCallback(tmp_path, run, routers=ROUTERS)
    args = SimpleNamespace(
        run_name=run_name, output_dir="some/out", average_tokens_across_devices=False
    )
    callback.on_train_begin(args, TrainerState(), None, model=Model())
    callback.on_train_end(args, TrainerState(), None)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_training_that_was_interrupted_can_begin_again(tmp_path: Path) -> None:
    interrupted = trainer(tmp_path)
    interrupted.training_step = mock.Mock(side_effect=KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    trainer(tmp_path).train()
    assert [line["step"] for line in records(tmp_path / "logs" / "out")] == [1, 2, 3, 4]


def test_evaluation_is_an_event_and_not_counted(tmp_path: Path) -> None:
    trainer(tmp_path, eval_strategy="steps", eval_steps=2).train()
    folder = tmp_path / "logs" / "out"
    evals = [event for event in records(folder, "event") if event["event"] == "eval"]
    assert [event["step"] for event in evals] == [2, 4]
    assert all(event["values"]["loss"] > 0 for event in evals)
    assert all(line["tokens"] < 4 * 12 for line in records(folder))


def numbers(folder: Path) -> list[tuple[int, dict[str, float]]]:
    found = [event for event in records(folder, "event") if event["event"] == "numbers"]
    return [(event["step"], event["values"]) for event in found]


def test_what_the_trainer_logs_is_in_the_log_behind_its_step(tmp_path: Path) -> None:
    trained = trainer(tmp_path, eval_strategy="steps", eval_steps=4, logging_steps=2)
    trained.train()
    folder = tmp_path / "logs" / "out"
    assert records(folder, "run")[0]["loss_kind"] == "outputs"
    history = [({**entry}, entry["step"]) for entry in trained.state.log_history]
    expected = []
    for entry, step in history:
        del entry["step"]
        expected.append((step, entry))
    assert [step for step, _ in expected] == [2, 4, 4, 4]  # two of training, evaluation, the end
    assert numbers(folder) == expected
    kinds = [(line.get("event", "step"), line["step"]) for line in every_record(folder)]
    assert kinds.index(("numbers", 2)) == kinds.index(("step", 2)) + 1


def every_record(folder: Path) -> list[dict[str, Any]]:
    """Without the header."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def called(tmp_path: Path, *logs: Any) -> MicroscopeCallback:
    callback = MicroscopeCallback(tmp_path, "run", routers=ROUTERS)
    args = SimpleNamespace(run_name=None, output_dir="o", average_tokens_across_devices=False)
    model, state = Model(), TrainerState(max_steps=2)
    callback.on_train_begin(args, state, None, model=model)
    for state.global_step in (1, 2):
        model(tokens())
        callback.on_step_end(args, state, None)
        callback.on_log(args, state, None, logs[state.global_step - 1])
    return callback


def test_only_finite_numbers_are_taken_and_not_too_many(tmp_path: Path) -> None:
    odd = {"a": float("nan"), "b": float("inf"), "c": "text", "d": [1.0], "e": 10**400, "f": 3}
    many = {f"metric {at}": at / 2 for at in range(70)}
    callback = called(tmp_path, odd, many)
    callback.on_train_end(None, TrainerState(global_step=2, max_steps=2), None)
    first, second = numbers(tmp_path / "run")
    assert first == (1, {"f": 3.0})
    assert second == (2, {f"metric {at}": at / 2 for at in range(64)})


def test_a_log_without_a_number_is_no_event_and_one_of_a_broken_training_not_the_next_ones(
    tmp_path: Path,
) -> None:
    callback = called(tmp_path, None, {"loss": 1.5})  # and it ends without a word
    args = SimpleNamespace(run_name=None, output_dir="o", average_tokens_across_devices=False)
    model, state = Model(), TrainerState(global_step=2, max_steps=3)
    callback.on_train_begin(args, state, None, model=model)
    state.global_step = 3
    model(tokens())
    callback.on_step_end(args, state, None)
    callback.on_train_end(args, state, None)
    assert [line["step"] for line in records(tmp_path / "run")] == [1, 2, 3]
    assert numbers(tmp_path / "run") == []


@pytest.fixture(name="uninterrupted", scope="module")
def _uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of six steps with a checkpoint after the third."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer(folder, max_steps=6, save_strategy="steps", save_steps=3).train()
    return folder


def resume(uninterrupted: Path, folder: Path, forgotten: dict[str, float]) -> None:
    """Resume after the third step; parameters whose names hold a key are scaled by its value."""
    checkpoint = str(uninterrupted / "out" / "checkpoint-3")
    # Of these families the Trainer restores all but the MoE weights.
    model = type(build("mixtral")).from_pretrained(checkpoint)
    for name, weight in model.named_parameters():
        for part, factor in forgotten.items():
            weight.data.mul_(factor if part in name else 1.0)
    trainer(folder, model, max_steps=6).train(resume_from_checkpoint=checkpoint)


def test_a_resumed_training_continues_with_its_next_step_and_its_judgement(
    uninterrupted: Path, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "microscope_tui.probe")
    resume(uninterrupted, tmp_path, {})
    assert "not those of the checkpoint" not in caplog.text
    assert caplog.messages[-1] == "not judged yet (warm-up until step 100)"  # not from step 4 on
    whole, resumed = uninterrupted / "logs" / "out", tmp_path / "logs" / "out"
    assert [records(run, "run")[0]["resumed_at_step"] for run in (whole, resumed)] == [None, 4]
    keys = ("step", "loss", "losses", "tokens", "tokens_per_expert", "router", "learning_rate")
    for line, expected in zip(records(resumed), records(whole)[3:], strict=True):
        assert [line[key] for key in keys] == [expected[key] for key in keys]
    events = records(whole, "event")
    assert [one["step"] for one in events if one["event"] == "checkpoint"] == [3, 6]


def test_a_resumed_training_without_its_experts_or_routers_is_warned_about(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(Trainer, "_load_from_checkpoint", lambda *args, **more: None)
    resume(uninterrupted, tmp_path, {"layers.1.mlp.gate": 1.01, "layers.2.mlp.experts": 1.01})
    assert "the MoE weights of L1, L2 are not those of the checkpoint" in caplog.text


def test_another_word_for_on_collapse_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 'log' or 'stop'"):
        MicroscopeCallback("logs", on_collapse="checkpoint")
