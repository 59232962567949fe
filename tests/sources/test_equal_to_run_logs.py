"""The same routing as a run log and as the file of another tool: same records, same verdict."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from microscope_tui import sources
from microscope_tui.commands.check.report import judge
from microscope_tui.probe import RunRecorder
from microscope_tui.runlog import RunFile, RunReader, StepEntry, encode_record
from microscope_tui.sources.reader import Record
from microscope_tui.sources.records import counts_of_shares, run_record, step_record
from tests.sources.reading import drained, entries_of, settle
from tests.sources.sound import COUNTS, LOSSES, SOUND, Sound, database
from tests.sources.truth import GOLDEN, STEPS, logged


def shares_log() -> list[Record]:
    """What the golden files of wandb and TensorBoard hold, as a run log."""
    names = ["L1", "L2"]
    records = [run_record("golden", [1, 2], [4, 4], 2, writer="test", counts="shares", names=names)]
    for step in STEPS:
        row = logged(step)
        shares = [[row[f"moe_ep_usage/L-{layer}_EP-{e}"] for e in range(4)] for layer in (1, 2)]
        # Of the shares, not the logged MaxVio, which may be that of another window.
        counts = [counts_of_shares(of_layer) for of_layer in shares]
        records.append(step_record(step, counts, loss=row["loss"]))
    return records


def counts_log() -> list[Record]:
    names = ["L0", "L1"]
    header = run_record("golden", [0, 1], [4, 4], 2, writer="test", counts="exact", names=names)
    tokens = None, 4, None  # in step 2 alone all choices can be of two experts each
    steps = zip((1, 2, 3), COUNTS, LOSSES, tokens, strict=True)
    return [header, *(step_record(at, rows, loss=x, tokens=n) for at, rows, x, n in steps)]


def facts(records: Sequence[Record]) -> list[str]:
    """All of the steps but their time; as text, so that NaN equals NaN."""
    found = []
    for run, step in entries_of(records):
        step.record.time = None
        routers = [(r.name, r.num_experts, r.top_k) for r in run.routers]
        found.append(f"{run.counts} {routers} {step.record} {step.matrices()}")
    return found


FILES = {
    "wandb": ("run-a.wandb", shares_log),
    "tensorboard": ("events.out.tfevents.1.host", shares_log),
    "tensorboard-tensors": ("events.out.tfevents.1.host", shares_log),
    "trackio": ("moe.db", counts_log),
    "mlflow": ("mlflow.db", counts_log),
}


@pytest.mark.parametrize("name", FILES)
def test_what_real_writers_wrote_is_a_run_log_with_its_numbers(name: str, tmp_path: Path) -> None:
    file, expected = FILES[name]
    path = GOLDEN / name
    content = path.read_bytes() if path.exists() else database(f"{name}.sql")
    (tmp_path / file).write_bytes(content)
    settle(tmp_path)
    (run,) = sources.Search(tmp_path).runs()  # runs without routers are left out
    assert isinstance(run, sources.ForeignRun)
    records = drained(run.form.open(run.file, run.run, run.name, run.request))
    assert facts(records) == facts(expected())
    reasons = [record["reason"] for record in records if record["kind"] == "event"]
    assert reasons == ["finished"] * (name in ("wandb", "mlflow"))


EXPERTS, K, TOKENS, ONSET = 16, 2, 256, 130


@pytest.fixture(scope="module")
def routing() -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(180, 2, TOKENS, EXPERTS, generator=generator)
    scores[ONSET - 1 :, 1, :, :K] += 2
    chosen = torch.nn.functional.one_hot(scores.topk(K).indices, EXPERTS)
    return chosen.sum((2, 3)).tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def recorded(routing: list[list[list[int]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    model = {"layers": [0, 1], "num_experts": EXPERTS, "top_k": K}
    log = RunRecorder(folder, run="run", planned_steps=None, model=model, balance={})
    for step, counts in enumerate(routing, 1):
        log.record_step(step=step, loss=None, tokens=TOKENS, tokens_per_expert=counts)
    log.sync()
    return folder / "metrics.jsonl"


def rounded(entry: StepEntry) -> list[object]:
    """Step, counts, and what follows from them, to the five digits that the recorder writes."""
    router = entry.record.router
    effective = [f"{value:.5g}" for value in router.effective_experts or ()]
    load = [f"{value:.5g}" for value in router.max_load or ()]
    dead = (router.dead_experts, router.starved_experts)
    return [entry.record.step, entry.matrices().tokens_per_expert, effective, load, dead]


def verdict(log: Path) -> tuple[int, list[tuple[str, int]]]:
    judgement = judge(RunFile("run", log, 0.0))
    return judgement.exit_code, [(found.rule, found.onset) for found, _ in judgement.findings]


EXACT = [sound for sound in SOUND if sound.times == 1 and not sound.one_moment]


@pytest.mark.parametrize("sound", EXACT, ids=lambda sound: sound.form)
def test_a_source_gives_the_steps_and_the_verdict_of_a_recorded_log(
    sound: Sound, routing: list[list[list[int]]], recorded: Path, tmp_path: Path
) -> None:
    path = tmp_path / sound.file
    path.write_bytes(sound.content(routing))
    settle(path)
    request = sources.SourceRequest(num_experts=EXPERTS, top_k=K, profile="pretrain")
    (run, *_) = sources.FORMATS[sound.form].reader.runs(path)
    records = drained(sources.FORMATS[sound.form].open(path, run, "run", request))
    found = [rounded(entry) for _, entry in entries_of(records)]
    entries = RunReader("run").feed(recorded.read_bytes())
    assert found == [rounded(entry) for entry in entries if isinstance(entry, StepEntry)]
    translated = tmp_path / "translated.jsonl"
    translated.write_bytes(b"".join(map(encode_record, records)))
    assert verdict(translated) == verdict(recorded) == (2, [("COLLAPSE", ONSET)])
