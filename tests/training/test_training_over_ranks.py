"""Whole runs of several processes: the same run as one process with the whole batch."""

import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_model import read_checkpoint
from tests.forked import ROOT, ForkServer, Program, free_port
from tests.training.conftest import SMALL, last_of_each, log_of
from tests.training.story import Capsys, Log, ReadLog, Train, from_step, steps, story, wait_until

Ranks = list[Program]
StartRanks = Callable[..., Ranks]
TRAINER = [str(ROOT / "train.py")]
KINDS = {
    "ddp": ["--parallel=ddp"],
    "fsdp": ["--parallel=fsdp"],
    "ddp-experts": ["--parallel=ddp", "--expert-parallel=2"],
    "fsdp-experts": ["--parallel=fsdp", "--expert-parallel=2"],
}
STEPS = 12

DIES = """
import os, signal, sys, train
real = train.optimizer_step
def stepping(run, step):
    if step == 7 and run.world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(run, step)
train.optimizer_step = stepping
sys.exit(train.run_command(train.app, sys.argv[1:]))
"""
OVERFLOWS = """
import functools, sys, train
from moe_model.training import setup
setup.LossScale = functools.partial(setup.LossScale, scale=2.0**24, backoff_factor=2.0**-10)
sys.exit(train.run_command(train.app, sys.argv[1:]))
"""
IN_OWN_FOLDER = """
import os, sys, train
os.chdir(os.environ["RANK"])
sys.exit(train.run_command(train.app, sys.argv[1:]))
"""


def start_as_ranks(server: ForkServer, *flags_of_each: Any, program: Any = TRAINER) -> Ranks:
    """Start a rank with each of the command lines, as ``srun`` does: nothing is around them."""
    size = str(len(flags_of_each))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": size}
    return [
        server.start(*program, *flags, **place, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, flags in enumerate(flags_of_each)
    ]


@pytest.fixture
def start_ranks(fork_server: ForkServer, arguments: Callable[..., list[str]]) -> StartRanks:
    return lambda *more: start_as_ranks(fork_server, *[arguments(*more)] * 2)


def end(ranks: Ranks) -> tuple[list[int], list[str]]:
    errors = [rank.communicate()[1] for rank in ranks]
    return [rank.wait() for rank in ranks], errors


@pytest.fixture(scope="session")
def runs(fork_server: ForkServer, trained: Any, tmp_path_factory: Any) -> Callable[[str], Any]:
    """The same run by one process and by two, each way; ``log``, ``flags``, ``codes``, ``errors``.

    Documents of all lengths, so that ranks have different numbers of targets.
    """
    folder = tmp_path_factory.mktemp("over-ranks")
    (folder / "files").mkdir()
    for n in range(60):
        text = f"file {n} of {n * n % 97}.\n" * (1 + n % 7)
        (folder / "files" / f"{n}.txt").write_text(text, "utf-8")
    common = [
        *SMALL, f"--data={folder / 'files'}:3 {ROOT}/README.md", "--document-mask",
        f"--steps={STEPS}", "--eval-every=5", "--save-every=4", "--mtp", "--z-loss-weight=1e-3",
        "--seq-aux-weight=0.1", "--balance=aux", "--router-noise=0.1",
    ]  # fmt: skip

    @cache
    def start(kind: str) -> Any:
        own = [f"--run={kind}", f"--log-dir={folder / 'logs'}", f"--checkpoint-dir={folder / 'ck'}"]
        flags = [*common, *own, *KINDS[kind]]
        return flags, start_as_ranks(fork_server, *[last_of_each(flags)] * 2)

    @cache
    def found(kind: str) -> Any:
        if kind in KINDS:
            flags, ranks = start(kind)
            codes, errors = end(ranks)
            log = log_of(folder / "logs" / kind)
            return SimpleNamespace(log=log, codes=codes, errors=errors, flags=flags)
        for parallel in KINDS:
            start(parallel)  # beside the one process
        split = {"one": ["--batch-size=8"], "accumulated": ["--batch-size=2", "--grad-accum=4"]}
        split["accumulated"] += ["--activation-checkpointing"]
        return trained(*common, *split[kind])

    return found


@pytest.mark.parametrize("kind", ["accumulated", *KINDS])
def test_ranks_and_micro_batches_make_the_same_step(runs: Callable[[str], Any], kind: str) -> None:
    """Losses to 1e-5, counts and biases to the bit: the log has those of all ranks together."""
    one, other = runs("one").log, runs(kind).log
    if kind in KINDS:
        assert runs(kind).codes == [0, 0], runs(kind).errors
        assert runs(kind).errors[1] == "", "the first rank speaks for all"
        shares = "no sample: each process has only a part of the model" in runs(kind).errors[0]
        assert shares == (kind != "ddp")
        assert other[0]["world_size"] == 2
        assert other[0]["expert_parallel_size"] == 1 + kind.endswith("experts")
    assert len(steps(one)) == len(steps(other)) == STEPS
    for expected, found in zip(steps(one), steps(other), strict=True):
        for exact in ("tokens", "tokens_per_expert", "expert_bias"):
            assert found[exact] == expected[exact]
        assert set(found["losses"]) == {"mtp", "seq_aux", "aux", "z_loss"}
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        for name, row in expected["router"].items():
            assert found["router"][name] == pytest.approx(row, rel=2e-4, abs=1e-5), name
    assert evaluations(other) == pytest.approx(evaluations(one), abs=1e-5)
    taken = [[r["slices"] for r in log if r.get("event") == "eval"] for log in (one, other)]
    assert taken[0] == taken[1]
    for source in taken[0][-1]["counts"]:
        assert {sum(row) for row in source} == {sum(source[0])}
    assert len(taken[0][-1]["names"]) == 2


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_rank_with_a_wrong_command_line_ends_all_at_once(
    fork_server: ForkServer, arguments: Callable[..., list[str]], wrong: int
) -> None:
    given = [arguments("--steps=1") for _ in range(2)]
    given[wrong].append("--bogus=1")
    codes, errors = end(start_as_ranks(fork_server, *given))
    assert codes == [64, 64]
    assert "Unknown option" in errors[0]
    assert errors[1 - wrong].count("\n") <= 2


def test_ranks_skip_the_step_that_one_process_skips_in_fp16_and_train_on_as_it_does(
    fork_server: ForkServer, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    common = arguments("--dtype=fp16", "--steps=5", "--mtp", "--eval-every=100", "--batch-size=8")
    begun = {"one": start_as_ranks(fork_server, [*common, "--run=one"], program=["-c", OVERFLOWS])}
    for kind in KINDS:
        flags = last_of_each([*common, f"--run={kind}", *KINDS[kind], "--batch-size=4"])
        begun[kind] = start_as_ranks(fork_server, flags, flags, program=["-c", OVERFLOWS])
    found = {}
    for kind, ranks in begun.items():
        codes, errors = end(ranks)
        assert set(codes) == {0}, errors
        rows = steps(log_of(tmp_path / "logs" / kind))
        assert [row["grad_norm"] in ("Infinity", "NaN") for row in rows] == [True] + [False] * 4
        scaler = read_checkpoint(tmp_path / "ck" / kind).description["loss_scale"]
        found[kind] = ([row["loss"] for row in rows], scaler["scale"], scaler["_growth_tracker"])
    losses, *scale = found["one"]
    assert scale == [2.0**14, 4]
    assert losses[-1] < losses[0]
    for kind in KINDS:
        assert found[kind] == (pytest.approx(losses, abs=2e-3), *scale), kind


def evaluations(log: Log) -> list[float]:
    return [record["values"]["loss"] for record in log if record.get("event") == "eval"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp-experts"])
def test_a_killed_rank_ends_the_others_and_together_they_resume_bit_for_bit(
    runs: Callable[[str], Any], kind: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    own = [f"--log-dir={tmp_path / 'logs'}", f"--checkpoint-dir={tmp_path / 'ck'}"]
    flags = last_of_each([*runs(kind).flags, *own])
    codes, errors = end(start_as_ranks(fork_server, flags, flags, program=["-c", DIES]))
    assert codes == [1, -signal.SIGKILL]
    assert "rank 0 of 2: another rank no longer responds" in errors[0]
    assert "start again with --resume auto" in errors[0]
    assert "Traceback" not in errors[0]
    codes, errors = end(start_as_ranks(fork_server, *[[*flags, "--resume=auto"]] * 2))
    assert codes == [0, 0], errors
    rows = story(log_of(tmp_path / "logs" / kind))
    first = rows[0]["step"]
    assert first > 4
    assert from_step(rows, 0) == from_step(story(runs(kind).log), first)


def test_a_signal_to_one_rank_saves_and_ends_all_with_75_and_other_numbers_resume(
    start_ranks: StartRanks, train: Train, read_log: ReadLog, tmp_path: Path
) -> None:
    endless = ("--steps=1000000", "--eval-every=1000000", "--save-every=1000000")
    ranks = start_ranks("--run=r", "--parallel=fsdp", "--expert-parallel=2", *endless)
    log = tmp_path / "logs" / "r" / "metrics.jsonl"
    wait_until(lambda: log.exists() and b'"step"' in log.read_bytes(), *ranks)
    ranks[1].send_signal(signal.SIGTERM)
    codes, errors = end(ranks)
    assert codes == [75, 75], errors
    assert "torchrun --nproc-per-node 2 -- train.py --run r --resume auto" in errors[0]
    assert "--parallel fsdp --expert-parallel 2" in errors[0]
    assert read_log("r")[-1]["reason"] == "signal"
    saved = read_checkpoint(tmp_path / "ck" / "r")
    assert saved.step == read_log("r")[-1]["step"]
    assert saved.load_model(), "a sharded run leaves whole weights"

    more = ("--run=r", "--resume=auto", f"--steps={saved.step + 3}", "--batch-size=8")
    assert train(*more) == 0
    assert [row["step"] - saved.step for row in steps(story(read_log("r")))] == [1, 2, 3]
    more = ("--run=r", "--resume=auto", f"--steps={saved.step + 5}", "--parallel=ddp")
    codes, errors = end(start_ranks(*more))
    assert codes == [0, 0], errors
    assert [row["step"] - saved.step for row in steps(story(read_log("r")))] == [4, 5]


def test_a_collapse_stops_all_ranks_with_3_whatever_signals_come_at_the_end(
    start_ranks: StartRanks, read_log: ReadLog, tmp_path: Path
) -> None:
    """torchrun sends SIGTERM to every rank as soon as the first has ended."""
    flags = ("--run=r", "--steps=90", "--force-collapse=2@5", "--on-collapse=stop")
    ranks = start_ranks(*flags)
    log = tmp_path / "logs" / "r" / "metrics.jsonl"
    wait_until(lambda: log.exists() and b'"reason":"collapse"' in log.read_bytes(), *ranks)
    while any(rank.poll() is None for rank in ranks):
        for rank in ranks:
            rank.terminate()
        time.sleep(0.002)
    codes, errors = end(ranks)
    assert codes == [3, 3], errors
    assert "Traceback" not in "".join(errors)
    assert read_log("r")[-1]["reason"] == "collapse"


@pytest.mark.parametrize(
    ("common", "of_second", "message"),
    [
        ([], ["--lr=0.1"], "rank 1 of 2: --lr is 0.1, on rank 0 it is not given: start all ranks"),
        (["--lr=0"], [], "train.py: --lr 0.0 is out of range"),
        ([], ["--expert-parallel=2"], "--expert-parallel is 2, on rank 0 it is 1: start all"),
        (["--expert-parallel=3"], [], "processes, which is 2, and of experts, which is 8"),
        # One spelling, another folder for each: as on machines that share no disk.
        (["--data=/proc/self/cwd/text.txt"], [], "rank 1 of 2: the text (--data) is sha256 "),
    ],
    ids=["option", "range", "layout", "indivisible", "text"],
)
def test_a_usage_error_of_any_rank_is_printed_once_and_ends_all_with_64(
    fork_server: ForkServer,
    arguments: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    common: list[str],
    of_second: list[str],
    message: str,
) -> None:
    for rank in range(2):
        (tmp_path / f"{rank}").mkdir()
        (tmp_path / f"{rank}" / "text.txt").write_text(f"the text of {rank}\n" * 100, "utf-8")
    monkeypatch.chdir(tmp_path)
    flags = arguments("--run=r", "--steps=2", *common)
    ranks = start_as_ranks(fork_server, flags, [*flags, *of_second], program=["-c", IN_OWN_FOLDER])
    codes, errors = end(ranks)
    assert codes == [64, 64], errors
    assert message in errors[0]
    assert len(errors[0].splitlines()) == 2, "the fault, and where help is"
    assert errors[1] == ""


def test_a_rank_that_cannot_connect_reports_its_own_error(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert train() == 64
    narration = capsys.readouterr().err
    assert narration.startswith("train.py: rank 1 of 2: RANK=1 and WORLD_SIZE=2 are set, but the")
    assert len(narration.splitlines()) == 1
