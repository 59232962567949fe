"""Options, data, schedule and console, each alone."""

import dataclasses
import math
import re
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch

from microscope_tui.probe import memory_bytes
from moe_model import PRESETS, LanguageModel, ModelConfig, UsageError
from moe_model.config import YarnScaling
from moe_model.training import machine
from moe_model.training.batches import held_out_batches
from moe_model.training.console import Console
from moe_model.training.corpus import Tokens
from moe_model.training.machine import choose_dtype, refuse_too_large
from moe_model.training.options import RUN_DEFAULTS, Options
from moe_model.training.parallel import refuse_layout
from moe_model.training.resolving import resolve
from moe_model.training.run import Progress, TrainingFailedError
from moe_model.training.step import evaluate, make_optimizer, weights_at
from moe_model.training.world import World
from tests.forked import ROOT
from tests.training.story import Capsys


def offered(trainer: ModuleType) -> set[str]:
    return {a.name for a in trainer.app.assemble_argument_collection() if not a.children}


def test_every_flag_in_the_documents_and_field_of_the_model_is_offered(trainer: ModuleType) -> None:
    """Flags after ``train.py`` on any page, and those in backticks on the trainer's own page."""
    pages = {path.name: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
    commands = " ".join(re.findall(r"train\.py([^`#\n]*)", " \n".join(pages.values())))
    named = set(re.findall(r"--[a-z][\w.-]*", commands))
    named |= set(re.findall(r"`(--[a-z][\w.-]*)", pages["training.md"]))
    assert len(named) > 15
    fields = [f.name for f in dataclasses.fields(ModelConfig) if f.name != "rope_scaling"]
    fields += [f"rope_scaling.{f.name}" for f in dataclasses.fields(YarnScaling)]
    named |= {f"--model.{name}" for name in fields}
    assert named - offered(trainer) == {"--help", "--help-all", "--model.FIELD"}


def test_every_flag_has_help(trainer: ModuleType, monkeypatch: Any, capsys: Capsys) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert trainer.run_command(trainer.app, ["--help-all"]) == 0
    text = capsys.readouterr().out
    described = re.findall(r"(--[\w.-]+)(?: --[\w.-]+)?(?: [A-Z]+)? +[A-Z]", text)
    assert set(described) >= offered(trainer)


@pytest.mark.parametrize("preset", PRESETS)
def test_resolved_options_are_complete_and_options_given_win(preset: str) -> None:
    default_name = resolve(Options(preset=preset)).run
    assert re.fullmatch(rf"{preset}-\d{{4}}-\d\d-\d\d-\d{{6}}", default_name)
    resolved = resolve(Options(preset=preset, steps=7, run="r"))
    optional = {"force_collapse", "sample_prompt", "config", "parallel", "resume"}
    optional |= {"balance_scope", "keep"}
    assert {k for k, v in resolved.to_dict().items() if v is None} == optional
    assert resolved.steps == 7
    assert resolved.lr == RUN_DEFAULTS[preset]["lr"]
    assert resolved.seq_len == PRESETS[preset]["max_position_embeddings"]


def test_a_model_that_no_machine_here_can_train_is_refused_with_its_size() -> None:
    config = ModelConfig.preset("deepseek-v3")
    with pytest.raises(UsageError, match=r"671.0B parameters \(37\.55B active per token\) need 10"):
        refuse_too_large(config, torch.device("cpu"))
    refuse_too_large(ModelConfig.preset("tiny", vocab_size=100), torch.device("cpu"))


def test_memory_counts_the_whole_model_while_it_is_built_and_then_the_share_of_each_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ModelConfig.preset("small", vocab_size=8192)
    size = config.parameters()
    experts = 7 * config.n_routed_experts * 3 * config.hidden_size * config.moe_intermediate_size
    ddp, fsdp = 16 * (size - experts) + 16 * experts // 4, 16 * size // 4
    for layout, share in (((1, 4), ddp), ((4, 4), fsdp), ((4, 1), fsdp), ((1, 1), 16 * size)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        for memory, fits in ((max(2 * share, 2 * 4 * size), True), (2 * share - 100, False)):
            monkeypatch.setattr(machine, "main_memory", lambda memory=memory: memory)
            with nullcontext() if fits else pytest.raises(UsageError, match="to train and cpu has"):
                refuse_too_large(config, torch.device("cpu"), *layout)
    monkeypatch.setattr(machine, "main_memory", lambda: 8 * size - 100)
    with pytest.raises(UsageError, match="to build and main memory has"):
        refuse_too_large(config, torch.device("cpu"), 64)


@pytest.mark.parametrize(
    ("kind", "experts", "problem"),
    [("ddp", 2, None), ("fsdp", 2, None), ("fsdp", 1, None), ("fsdp", 4, "among 6 processes")],
)
def test_what_shares_an_expert_divides_its_sizes(kind: Any, experts: int, problem: Any) -> None:
    config = ModelConfig.preset("tiny", vocab_size=97, hidden_size=24, moe_intermediate_size=4)
    world = World(size=24 if problem else 8)
    with pytest.raises(UsageError, match=problem) if problem else nullcontext():
        refuse_layout(config, kind, world, experts)


def test_the_published_vocabulary_stays_whatever_the_text_has() -> None:
    config = Options(preset="deepseek-v3", seq_len=8).model_config(97)
    assert config == ModelConfig.preset("deepseek-v3")


def test_evaluation_judges_the_model_as_it_generates_and_leaves_no_trace() -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "moe_intermediate_size": 8}
    model = LanguageModel(ModelConfig.preset("tiny", vocab_size=50, **fields)).train()
    batches = held_out_batches(Tokens(torch.arange(50), torch.tensor([0])), 2, 8, most=2)
    expected, _ = evaluate(model, batches, torch.float32)
    assert model.training
    logits_BSV = torch.cat([model.eval()(b.tokens_BN[:, :-1]).logits_BSV for b in batches])
    targets_BS = torch.cat([b.tokens_BN[:, 1:] for b in batches])
    loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten())
    assert expected == pytest.approx(loss.item(), rel=1e-5)


def test_multi_token_prediction_weighs_a_third_after_ten_of_fourteen_point_eight_parts() -> None:
    options = Options(steps=148, mtp_weight=0.3, seq_aux_weight=0.0, aux_weight=0.01)
    assert weights_at(1, options) == weights_at(100, options) == {"mtp": 0.3, "aux": 0.01}
    assert weights_at(101, options) == weights_at(148, options) == {"mtp": 0.3 / 3, "aux": 0.01}


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.LayerNorm(3))
    decayed, kept = make_optimizer(model, Options(lr=1e-3)).param_groups
    assert [p.dim() for p in decayed["params"]] == [2]
    assert [p.dim() for p in kept["params"]] == [1, 1]
    assert kept["weight_decay"] == 0


def test_only_consecutive_steps_without_a_finite_gradient_end_a_run() -> None:
    step: dict[str, Any] = {"step": 1, "loss": 1.0, "tokens_per_s": 1.0, "memory_bytes": 1}
    step |= {"tokens": 7, "router": {"entropy": []}}
    progress = Progress()
    for norm in [math.nan] * 19 + [1.0] + [math.inf] * 19:
        progress.advance({**step, "grad_norm": norm}, [])
    assert (progress.bad_steps, progress.tokens) == (19, 7 * 39)
    with pytest.raises(TrainingFailedError, match="not finite in 20 consecutive steps"):
        progress.advance({**step, "grad_norm": math.nan}, [])


@pytest.mark.parametrize(
    ("device", "hardware", "asked", "taken"),
    [
        ("cpu", {"avx512_bf16": True}, "auto", torch.bfloat16),
        ("cpu", {"amx_bf16": True}, "auto", torch.bfloat16),
        ("cpu", {"avx512_f": True, "avx512_bf16": False}, "auto", torch.float32),
        ("cpu", {"avx512_bf16": True}, "fp32", torch.float32),
        ("cuda", "native", "auto", torch.bfloat16),
        ("cuda", "emulated", "auto", torch.float16),
    ],
)
def test_auto_takes_bf16_where_there_are_instructions_for_it_and_not_where_it_is_emulated(
    device: str, hardware: Any, asked: str, taken: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or hardware == "native"

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: hardware, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_dtype(asked, torch.device(device)) == taken


def test_the_memory_of_the_process_is_more_than_torch_itself() -> None:
    assert memory_bytes() > 10_000_000


@pytest.mark.parametrize(
    ("progress", "line", "layers"),
    [
        (
            Progress(
                step=1, loss=2.5, tokens_per_s=1234.4, collapse_index=[0.91, 0.42],
                entropy=[1.5, 0.75], memory_bytes=2**30,
            ),
            "loss 2.500  1,234 tok/s  worst L2 c 0.42  H 0.75  1.0 GiB",
            "L1 0.91  L2 0.42",
        ),
        (
            Progress(step=1, loss=2.5, validation_loss=2.25, collapse_index=[0.9, 0.0]),
            "loss 2.500  val 2.250  0 tok/s  worst L2 c 0.00  0.0 GiB",
            "L1 0.90  L2 0.00",
        ),
        (
            Progress(step=1, loss=2.5, collapse_index=[None, None]),
            "loss 2.500  0 tok/s  0.0 GiB",
            "L1 –  L2 –",
        ),
    ],
    ids=["worst layer", "held-out loss", "no collapse index"],
)  # fmt: skip
def test_the_console_shows_a_step_and_a_summary_and_interprets_nothing(
    progress: Progress, line: str, layers: str, capsys: Capsys
) -> None:
    with Console(10, ["L1", "L2"]) as console:
        console.step(progress)
        console.say("[bold]not markup[/bold]")
        console.summary(progress, "finished", "healthy")
    text = capsys.readouterr().err
    assert f"step 1/10  {line}  ETA" in text
    assert "[bold]not markup[/bold]" in text
    assert layers in text
    assert "\x1b" not in text
