"""The command on models from disk: families of transformers, and this project's own in all ways
that they come about."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.families.oracle import Oracle
from microscope_tui.extensions.anatomy.checkpoints import load
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.probe import find_sites
from moe_model import read_checkpoint
from tests.probe.folders import CHARACTERS, family, own, probe, text
from tests.problems import problems_in

FAMILIES = (
    "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "deepseek_v4", "granitemoe", "olmoe",
    "phimoe", "jetmoe", "llama4", "longcat_flash", "zaya", "switch_transformers", "nemotron_h",
)  # fmt: skip
WINDOW, BATCH, TOKENS = 16, 3, 106


def run(model: Path, folder: Path) -> Routing:
    """Probe two files in windows of 16, the last of each shorter: batches with padding."""
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(text(TOKENS // 2))
    texts = [folder / name for name in ("a.txt", "b.txt")]
    out = folder / "out"
    assert probe(model, *texts, window=WINDOW, batch_size=BATCH, output=out) == 0
    lines = (out / "metrics.jsonl").read_bytes().splitlines()
    assert problems_in(enumerate(lines, 1)) == []
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if record["kind"] == "step"]
    assert records[0]["profile"] == "eval"
    assert (records[-1]["event"], records[-1]["reason"]) == ("end", "finished")
    routing = Routing(out / "routing.bin")
    assert sum(step["tokens"] for step in steps) == routing.tokens == TOKENS
    assert b"".join(routing.text(0, TOKENS)).decode() == text(TOKENS // 2) * 2
    assert records[0]["model"]["layer_names"] == list(routing.shape.layer_names)
    for layer in range(len(routing.shape.layers)):
        lines_of = [step["tokens_per_expert"][layer] for step in steps]
        logged = [sum(column) for column in zip(*lines_of, strict=True)]
        rows = [routing.tables.counts[one][layer] for one in (0, 1)]
        width = len(logged)
        assert [sum(column) for column in zip(*rows, strict=True)][:width] == logged
    return routing


@pytest.mark.parametrize("name", FAMILIES)
def test_the_choices_of_every_token_are_those_of_the_router(name: str, tmp_path: Path) -> None:
    model = family(name, tmp_path / "model")
    with run(model, tmp_path) as routing:
        seen = alone(name, model)
        for layer, router in enumerate(routing.shape.layer_names):
            known = routing.shape.num_experts
            for token, ids in enumerate(seen[router]):
                expected = sorted(one for one in ids if 0 <= one < known)
                assert sorted(routing.choice(layer, token).experts) == expected, (router, token)
            choices = [routing.choice(layer, token) for token in range(TOKENS)]
            weights = [choice.weights for choice in choices]
            assert all(list(row) == sorted(row, reverse=True) for row in weights if row[:1] > (0,))


def alone(name: str, folder: Path) -> dict[str, list[list[int]]]:
    """What the routers choose for each window by itself, without padding and without the probe."""
    subject = load(str(folder), device="cpu")
    oracle = Oracle(name, subject.model)
    oracle.recording = True
    whole, _ = subject.pieces.encode(text(TOKENS // 2))
    with torch.inference_mode():
        for _ in ("a.txt", "b.txt"):
            for start in range(0, len(whole), WINDOW):
                subject.forward(torch.tensor([whole[start : start + WINDOW]]), None)
    found = {}
    for site in find_sites(subject.model, None):
        calls = oracle.calls[site.path.rpartition(".")[0]]
        found[site.name] = [ids for call in calls for ids in call]
    return found


def test_our_checkpoint_is_traced_with_its_own_numbers(tmp_path: Path) -> None:
    with run(own(tmp_path / "model"), tmp_path) as routing:
        model = read_checkpoint(tmp_path / "model").load_model()
        ids_BS = torch.tensor([[CHARACTERS.index(c) for c in text(WINDOW)]])
        with torch.inference_mode():
            routings = model(ids_BS).routings
        for layer, one in enumerate(routings):
            for token in range(WINDOW):
                choice = routing.choice(layer, token)
                assert list(choice.experts) == one.expert_ids_TK[token].tolist()
                assert choice.weights == pytest.approx(one.weights_TK[token].tolist(), abs=1e-3)
                assert choice.margin == pytest.approx(float(one.margin_T[token]), rel=1e-2)
