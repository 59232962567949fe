"""Whole runs of several processes: the same run as one process with the whole batch."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_model import read_checkpoint
from tests.forked import ROOT, ForkServer, Program
from tests.training.story import Log, from_step, story

ReadLog = Callable[[str], Log]
Ranks = list[Program]

STEPS = 24


@pytest.fixture
def start_ranks(
    fork_server: ForkServer, arguments: Callable[..., list[str]]
) -> Callable[..., Ranks]:
    """Start the trainer as so many processes, as ``srun`` does: without anything around them."""

    def run(size: int, *more: str) -> Ranks:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
        words = [str(ROOT / "train.py"), *arguments(*more)]
        return [
            fork_server.start(*words, **place, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in range(size)
        ]

    return run


def end(ranks: Ranks, timeout: float = 120) -> tuple[list[int], list[str]]:
    """Exit codes and what each rank said."""
    errors = [rank.communicate(timeout=timeout)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], errors


def wait_for(path: Path, ranks: Ranks) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert all(rank.poll() is None for rank in ranks), end(ranks)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps(log: Log) -> Log:
    return [record for record in story(log) if record["kind"] == "step"]


def assert_same_run(one: Log, other: Log) -> None:
    """Losses to 1e-5, counts and biases to the bit: the log has those of all ranks together."""
    assert len(steps(one)) == len(steps(other)) == STEPS
    for expected, found in zip(steps(one), steps(other), strict=True):
        for exact in ("tokens", "tokens_per_expert", "expert_bias"):
            assert found[exact] == expected[exact]
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        for name, row in expected["router"].items():
            assert found["router"][name] == pytest.approx(row, rel=2e-4, abs=1e-5), name
    evaluations = [
        [record["values"]["loss"] for record in story(log) if record.get("event") == "eval"]
        for log in (one, other)
    ]
    assert evaluations[0] == pytest.approx(evaluations[1], abs=1e-5)


COMMON = (f"--steps={STEPS}", "--eval-every=10", "--save-every=10", "--mtp", "--z-loss-weight=1e-3")


@pytest.fixture
def folder_of_files(tmp_path: Path) -> str:
    """Documents of all lengths, so that ranks have different numbers of targets."""
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(60):
        (folder / f"{n}.txt").write_text(f"file {n} of {n * n % 97}.\n" * (1 + n % 7), "utf-8")
    return f"--data={folder}"


def test_a_step_is_the_same_over_ranks_and_micro_batches(
    train: Callable[..., int],
    start_ranks: Callable[..., Ranks],
    read_log: ReadLog,
    folder_of_files: str,
) -> None:
    together = [
        start_ranks(2, f"--run={kind}", f"--parallel={kind}", folder_of_files, *COMMON)
        for kind in ("ddp", "fsdp")
    ]
    assert train("--run=one", "--batch-size=8", folder_of_files, *COMMON) == 0
    assert train("--run=accumulated", "--grad-accum=2", folder_of_files, *COMMON) == 0
    for ranks in together:
        codes, errors = end(ranks)
        assert codes == [0, 0], errors
        assert errors[1] == "", "the first rank speaks for all"
    for run in ("ddp", "fsdp", "accumulated"):
        assert_same_run(read_log("one"), read_log(run))
    assert read_log("ddp")[0]["world_size"] == 2


def test_ranks_do_not_wait_for_gradients_of_multi_token_prediction_without_a_weight(
    train: Callable[..., int], start_ranks: Callable[..., Ranks], read_log: ReadLog, tmp_path: Path
) -> None:
    flags = ("--steps=4", "--eval-every=4", "--mtp", "--mtp-weight=0")
    together = [
        start_ranks(2, f"--run={kind}", f"--parallel={kind}", *flags) for kind in ("ddp", "fsdp")
    ]
    assert train("--run=one", "--batch-size=8", *flags) == 0
    for ranks in together:
        codes, errors = end(ranks)
        assert codes == [0, 0], errors
    one = steps(read_log("one"))
    for kind in ("ddp", "fsdp"):
        found = steps(read_log(kind))
        assert [row["tokens_per_expert"] for row in found] == [
            row["tokens_per_expert"] for row in one
        ]
        for expected, row in zip(one, found, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5)
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        state = read_checkpoint(tmp_path / "ck" / kind).load_model().state_dict()
        new = read_checkpoint(tmp_path / "ck" / "one").load_model().state_dict()
        assert all(torch.equal(state[name], new[name]) for name in state if "mtp." in name)


def test_a_signal_to_one_rank_saves_and_ends_all_with_75_and_other_numbers_go_on(
    start_ranks: Callable[..., Ranks], train: Callable[..., int], read_log: ReadLog, tmp_path: Path
) -> None:
    endless = ("--steps=1000000", "--eval-every=1000000", "--save-every=1000000")
    ranks = start_ranks(2, "--run=r", "--parallel=fsdp", *endless)
    wait_for(tmp_path / "logs" / "r" / "metrics.jsonl", ranks)
    time.sleep(0.5)
    ranks[1].send_signal(signal.SIGTERM)
    codes, errors = end(ranks)
    assert codes == [75, 75], errors
    log = read_log("r")
    assert log[-1]["reason"] == "signal"
    saved = read_checkpoint(tmp_path / "ck" / "r")
    assert saved.step == log[-1]["step"]
    assert saved.load_model(), "a sharded run leaves whole weights"

    more = ("--run=r", "--resume=auto", f"--steps={saved.step + 5}", "--save-every=2")
    assert train(*more, "--batch-size=8") == 0
    rows = steps(read_log("r"))
    assert [row["step"] for row in rows] == list(range(saved.step + 1, saved.step + 6))
    more = ("--run=r", "--resume=auto", f"--steps={saved.step + 8}", "--batch-size=4")
    codes, errors = end(start_ranks(2, *more, "--parallel=ddp"))
    assert codes == [0, 0], errors
    assert len(steps(read_log("r"))) == 3


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_several_ranks_resume_bit_for_bit(
    kind: str, start_ranks: Callable[..., Ranks], read_log: ReadLog, tmp_path: Path
) -> None:
    flags = ("--steps=30", "--save-every=4", "--eval-every=10", f"--parallel={kind}")
    whole = start_ranks(2, "--run=whole", *flags)
    killed = start_ranks(2, "--run=killed", *flags)
    wait_for(tmp_path / "ck" / "killed" / "previous", killed)
    killed[1].kill()
    codes, errors = end(killed)
    assert codes[0] == 1
    assert "rank 0 of 2: another rank no longer responds" in errors[0]
    assert "start again with --resume auto" in errors[0]
    assert "Traceback" not in errors[0]
    assert end(whole)[0] == [0, 0]
    codes, errors = end(start_ranks(2, "--run=killed", "--resume=auto", *flags))
    assert codes == [0, 0], errors
    rows = story(read_log("killed"))
    first = rows[0]["step"]
    assert first > 1
    assert from_step(rows, 0) == from_step(story(read_log("whole")), first)


def test_a_usage_error_is_reported_once_and_ends_all_ranks_with_64(
    start_ranks: Callable[..., Ranks],
) -> None:
    codes, errors = end(start_ranks(2, "--steps=0"))
    assert codes == [64, 64]
    assert "--steps 0 is too few" in errors[0]
    assert errors[1] == ""


def test_a_collapse_stops_all_ranks_with_3(
    start_ranks: Callable[..., Ranks], read_log: ReadLog
) -> None:
    flags = ("--run=r", "--steps=90", "--force-collapse=2@5", "--on-collapse=stop")
    ranks = start_ranks(2, *flags)
    while all(rank.poll() is None for rank in ranks):
        time.sleep(0.005)
    for rank in ranks:  # as torchrun does as soon as the first rank has ended
        rank.terminate()
    codes, errors = end(ranks)
    assert codes == [3, 3], errors
    assert read_log("r")[-1]["reason"] == "collapse"
