"""Options, data, schedule and console, each alone."""

from __future__ import annotations

import dataclasses
import io
import re
from types import ModuleType

import pytest
import torch
from rich.console import Console as RichConsole

from moe_model.command import UsageError
from moe_model.config import PRESETS, ModelConfig, YarnScaling
from moe_model.model import LanguageModel
from moe_model.training.console import Console
from moe_model.training.data import Corpus, TrainingBatches, held_out_batches, load_text
from moe_model.training.evaluation import evaluate
from moe_model.training.machine import (
    choose_device,
    choose_dtype,
    has_native_bf16,
    memory_bytes,
    refuse_too_large,
)
from moe_model.training.optimizer import learning_rate_at, make_optimizer
from moe_model.training.options import RUN_DEFAULTS, Options, settle
from moe_model.training.progress import Progress

FLAGS = [
    "--preset", "--data", "--steps", "--batch-size", "--seq-len", "--grad-accum", "--lr", "--seed",
    "--device", "--dtype", "--mtp", "--mtp-weight", "--balance", "--bias-update-rate",
    "--seq-aux-weight", "--aux-weight",
    "--z-loss-weight", "--router-noise", "--capacity-factor", "--drop-policy",
    "--force-collapse", "--run", "--log-dir", "--counts-every", "--checkpoint-dir", "--save-every",
    "--eval-every", "--sample-prompt",
]  # fmt: skip


def model_fields() -> list[str]:
    yarn = [f"rope_scaling.{f.name}" for f in dataclasses.fields(YarnScaling)]
    return [f.name for f in dataclasses.fields(ModelConfig) if f.name != "rope_scaling"] + yarn


def test_the_command_line_is_frozen(trainer: ModuleType) -> None:
    """A new or lost flag is a decision, taken here and in the documentation."""
    fields = model_fields()
    offered = [a.name for a in trainer.app.assemble_argument_collection() if not a.children]
    assert sorted(offered) == sorted([*FLAGS, *(f"--model.{name}" for name in fields)])


def test_every_flag_has_help(
    trainer: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert trainer.run_command(trainer.app, ["--help"]) == 0
    described = re.findall(
        r"(--[\w.-]+)(?: --[\w.-]+)?(?: [A-Z]+)? +[A-Z]", capsys.readouterr().out
    )
    fields = [f"--model.{name}" for name in model_fields()]
    assert set(described) >= {*FLAGS, *fields}


def test_every_preset_says_how_it_is_trained() -> None:
    assert set(RUN_DEFAULTS) == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_settled_options_are_complete_and_options_given_win(preset: str) -> None:
    settled = settle(Options(preset=preset, steps=7, run="r"))
    optional = {"force_collapse", "sample_prompt", "router_noise", "capacity_factor", "drop_policy"}
    assert {k for k, v in settled.to_dict().items() if v is None} == optional
    assert settled.steps == 7
    assert settled.lr == RUN_DEFAULTS[preset].lr
    assert settled.seq_len == PRESETS[preset]["max_position_embeddings"]


def test_a_model_that_no_machine_here_can_train_is_refused_with_its_size() -> None:
    config = ModelConfig.preset("deepseek-v3")
    with pytest.raises(
        UsageError, match=r"671\.0B parameters \(37\.55B active per token\) need 10,9"
    ):
        refuse_too_large(config, torch.device("cpu"))
    refuse_too_large(ModelConfig.preset("tiny", vocab_size=100), torch.device("cpu"))


def test_the_published_vocabulary_stays_whatever_the_text_has() -> None:
    config = Options(preset="deepseek-v3", seq_len=8).model_config(97)
    assert config == ModelConfig.preset("deepseek-v3")


def test_default_run_name_says_preset_and_time() -> None:
    assert re.fullmatch(r"tiny-\d{4}-\d\d-\d\d-\d{6}", settle(Options()).run)


def test_the_text_that_comes_with_python_is_there_and_the_same_every_time() -> None:
    text = load_text("python-docs")
    assert len(text) > 100_000
    assert text == load_text("python-docs")


def test_held_out_text_is_never_trained_on() -> None:
    corpus = Corpus.from_text("".join(chr(0x4E00 + i) for i in range(1000)), seq_len=16)
    assert len(corpus.training) == 900
    assert not set(corpus.training.tolist()) & set(corpus.held_out.tolist())
    batches = TrainingBatches(corpus.training, 64, 17, seed=0)
    drawn = torch.cat([batches.draw(torch.device("cpu")) for _ in range(50)])
    assert drawn.max() == corpus.training.max(), "the last token can be reached"
    assert drawn.min() == 0


def test_batches_are_windows_of_the_text() -> None:
    rows = TrainingBatches(torch.arange(200), 3, 9, seed=0).draw(torch.device("cpu"))
    assert rows.shape == (3, 9)
    assert (rows.diff() == 1).all()


def test_held_out_targets_are_inputs_one_token_later() -> None:
    tokens = torch.arange(200)
    for inputs, targets in held_out_batches(tokens, 2, 8, most=3):
        assert torch.equal(targets, inputs + 1)


def test_held_out_batches_do_not_overlap_and_never_exceed_the_text() -> None:
    for length in (9, 17, 200, 1000):
        batches = held_out_batches(torch.arange(length), 2, 8, most=3)
        inputs = torch.cat([b[0] for b in batches]).flatten()
        assert len(inputs.unique()) == len(inputs)
        assert 1 <= len(batches) <= 3


def test_batches_depend_on_the_seed_alone() -> None:
    tokens = torch.arange(500)
    first = TrainingBatches(tokens, 4, 8, seed=1).draw(torch.device("cpu"))
    torch.rand(10)
    assert torch.equal(TrainingBatches(tokens, 4, 8, seed=1).draw(torch.device("cpu")), first)
    other = TrainingBatches(tokens, 4, 8, seed=2).draw(torch.device("cpu"))
    assert not torch.equal(other, first)


def test_evaluation_judges_the_model_as_it_generates_and_leaves_no_trace() -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "moe_intermediate_size": 8}
    model = LanguageModel(ModelConfig.preset("tiny", vocab_size=50, **fields)).train()
    batches = held_out_batches(torch.arange(50), 2, 8, most=2)
    expected = evaluate(model, batches, torch.device("cpu"), torch.float32)
    logits_BSV = torch.cat([model.eval()(inputs).logits_BSV for inputs, _ in batches])
    targets_BS = torch.cat([targets for _, targets in batches])
    loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten())
    assert expected == pytest.approx(loss.item(), rel=1e-5)

    model.train().routers[0].forced_experts = (0, 1)
    forced = evaluate(model, batches, torch.device("cpu"), torch.float32)
    assert forced == expected, "a collapse on purpose is of the training only"
    assert model.training
    with pytest.raises(RuntimeError, match="No routing was counted"):
        model.readings.report(model.routers)


def test_learning_rate_warms_up_and_ends_at_a_tenth() -> None:
    rates = [learning_rate_at(step, 1000, 1.0) for step in range(1, 1001)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[99] == 1.0
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate_at(1, 1, 1.0) == 1.0


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.LayerNorm(3))
    decayed, kept = make_optimizer(model, 1e-3).param_groups
    assert [p.dim() for p in decayed["params"]] == [2]
    assert [p.dim() for p in kept["params"]] == [1, 1]
    assert kept["weight_decay"] == 0


def test_auto_takes_bf16_exactly_where_the_hardware_has_it() -> None:
    device = choose_device("auto")
    expected = torch.bfloat16 if has_native_bf16(device) else torch.float32
    assert choose_dtype("auto", device) == expected
    assert choose_dtype("fp32", device) == torch.float32
    assert memory_bytes(device) > 10_000_000


def show(progress: Progress) -> str:
    console = Console(10, ["L1", "L2"])
    console._rich.file = io.StringIO()
    with console:
        console.step(progress)
        console.say("[bold]not markup[/bold]")
        console.summary(progress, "finished")
    return console._rich.file.getvalue()


def test_console_names_the_worst_layer_and_interprets_nothing() -> None:
    progress = Progress(step=1, loss=2.5, tokens_per_s=1234.4, collapse_index=[0.91, 0.42])
    text = show(progress)
    assert "step 1/10  loss 2.500  1,234 tok/s  worst c 0.42 L2" in text
    assert "[bold]not markup[/bold]" in text
    assert "L1 0.91  L2 0.42" in text
    assert "\x1b" not in text


def test_console_can_do_without_a_collapse_index() -> None:
    text = show(Progress(step=1, collapse_index=[None, None]))
    assert "worst" not in text
    assert "L1 –  L2 –" in text


def test_console_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(RichConsole, "is_terminal", property(lambda self: True))
    text = show(Progress(step=4, loss=2.5, collapse_index=[0.9, 0.8]))
    assert "4/10" in text
    assert "━" in text
