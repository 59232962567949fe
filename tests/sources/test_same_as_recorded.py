"""The same routing, recorded as a run log and found in another tool's files, is judged the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from microscope_tui.probe import RunRecorder
from microscope_tui.report import judge
from microscope_tui.runlog import RunFile, RunReader, StepEntry
from microscope_tui.sources import (
    MegatronReader,
    RecordReader,
    SGLangReader,
    SourceRequest,
    TensorRTReader,
)
from tests.sources import test_megatron, test_sglang
from tests.sources.dumped import drained, encoded, entries_of, settle

LAYERS, EXPERTS, K, TOKENS, STEPS, ONSET = 2, 16, 2, 256, 180, 130
ASKED = SourceRequest(num_experts=EXPERTS, top_k=K, profile="pretrain")


def routing() -> torch.Tensor:
    """Experts of each token [steps, layers, tokens, k]; the second router collapses."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(STEPS, LAYERS, TOKENS, EXPERTS, generator=generator)
    scores[ONSET - 1 :, 1, :, :K] += 2
    return scores.topk(K).indices


def counts_of(ids: torch.Tensor) -> torch.Tensor:
    """[steps, layers, experts]"""
    empty = torch.zeros(STEPS, LAYERS, EXPERTS, dtype=torch.int32)
    flat = ids.flatten(2)
    return empty.scatter_add(2, flat, torch.ones_like(flat, dtype=torch.int32))


def megatron(folder: Path, ids: torch.Tensor) -> RecordReader:
    chosen = {(step, layer): ids[step, layer] for step in range(STEPS) for layer in range(LAYERS)}
    test_megatron.trace(folder, 0, chosen)
    return MegatronReader(folder, "run", ASKED)


def sglang(folder: Path, ids: torch.Tensor) -> RecordReader:
    path = folder / "expert_distribution_recorder_1.5.pt"
    torch.save({"rank": 0, "logical_count": counts_of(ids)}, path)
    settle(path)
    return SGLangReader(path, "run", ASKED)


def per_pass(folder: Path, ids: torch.Tensor) -> RecordReader:
    halves = counts_of(ids) // 2
    mapping = torch.arange(EXPERTS).repeat(LAYERS, 1)
    for rank, values in enumerate((halves, counts_of(ids) - halves)):
        test_sglang.detail(folder, rank, values, 1.5, mapping=mapping)
    return SGLangReader(folder, "run", ASKED)


def tensorrt_llm(folder: Path, ids: torch.Tensor) -> RecordReader:
    counts = counts_of(ids)
    tensors = {f"{s}_{n}": counts[s, n].clone() for s in range(STEPS) for n in range(LAYERS)}
    safetensors.torch.save_file(tensors, folder / "rank0.safetensors")
    settle(folder)
    return TensorRTReader(folder, "run", ASKED)


def recorded(folder: Path, ids: torch.Tensor) -> list[StepEntry]:
    """The same routing as a trainer with our recorder logs it."""
    model = {"layers": [*range(LAYERS)], "num_experts": EXPERTS, "top_k": K}
    log = RunRecorder(folder, run="run", planned_steps=None, model=model, balance={})
    for step, counts in enumerate(counts_of(ids).tolist(), 1):
        log.record_step(step=step, loss=None, tokens=TOKENS, tokens_per_expert=counts)
    log.sync()
    lines = (folder / "metrics.jsonl").read_bytes()
    return [entry for entry in RunReader("run").feed(lines) if isinstance(entry, StepEntry)]


def facts(entry: StepEntry) -> dict[str, Any]:
    """What both must say, to the five digits that the recorder writes."""
    router = entry.record.router
    return {
        "step": entry.record.step,
        "counts": entry.matrices().tokens_per_expert,
        "effective": [f"{value:.5g}" for value in router.effective_experts or ()],
        "load": [f"{value:.5g}" for value in router.max_load or ()],
        "dead": router.dead_experts,
        "starved": router.starved_experts,
    }


def verdict(log: Path) -> tuple[int, list[tuple[str, int]]]:
    """Exit code of ``check``, and the findings with their onsets."""
    judgement = judge(RunFile("run", log, 0.0))
    return judgement.exit_code, [(found.rule, found.onset) for found, _ in judgement.findings]


@pytest.mark.parametrize("write", [megatron, sglang, per_pass, tensorrt_llm])
def test_a_source_gives_the_steps_and_the_verdict_of_a_recorded_log(
    write: Callable[[Path, torch.Tensor], RecordReader], tmp_path: Path
) -> None:
    ids = routing()
    (tmp_path / "source").mkdir()
    records = drained(write(tmp_path / "source", ids))
    found = [facts(entry) for _, entry in entries_of(records)]
    assert found == [facts(entry) for entry in recorded(tmp_path / "log", ids)]
    translated = tmp_path / "translated.jsonl"
    translated.write_bytes(encoded(records))
    expected = 2, [("COLLAPSE", ONSET)]
    assert verdict(translated) == verdict(tmp_path / "log" / "metrics.jsonl") == expected
