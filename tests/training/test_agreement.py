"""Ranks that were not started alike end alike, and the first one says what is wrong.

``ranks_that_differ.py`` beside this file is what the ranks do, over gloo on this machine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_model import FAILED, FINISHED, USAGE, CharTokenizer, read_checkpoint
from moe_model.training import (
    Corpus,
    Document,
    Options,
    World,
    agree,
    flag_name,
    option_facts,
    start_facts,
)
from moe_model.training.options import ModelOverrides
from tests.forked import ForkServer
from tests.training.worlds import Seen, seen_by

Outcome = Callable[[str], list[Any]]
Ran = Callable[[str], tuple[list[int], list[str]]]


@pytest.fixture(scope="module")
def worlds(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Seen]:
    """What three ranks saw."""
    return cache(
        lambda: seen_by(
            fork_server, "ranks_that_differ", "worlds", tmp_path_factory.mktemp("worlds")
        )
    )


@pytest.fixture
def of_each(worlds: Callable[[], Seen]) -> Outcome:
    """How each of three ranks ended: kind, words, and whether it stayed out of the block."""

    def found(name: str) -> list[Any]:
        work = "facts" if name in worlds()["facts-3-0"] else "faults"
        return [worlds()[f"{work}-3-{rank}"][name] for rank in range(3)]

    return found


@pytest.fixture(scope="module")
def ran(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Exit codes of the two ranks of a whole run, and what each said."""

    @cache
    def folder() -> Path:
        made = tmp_path_factory.mktemp("runs")
        seen_by(fork_server, "ranks_that_differ", "runs", made)
        return made

    def found(name: str) -> tuple[list[int], list[str]]:
        said = [(folder() / f"{name}-{rank}.txt").read_text("utf-8") for rank in range(2)]
        return json.loads((folder() / f"{name}.json").read_text("utf-8")), said

    return found


QUIET_USAGE = ["SystemExit", "64", False]
QUIET_FAILURE = ["SystemExit", "1", False]


# ---- faults are of all ranks ------------------------------------------------------------------


def test_a_block_without_faults_changes_nothing(of_each: Outcome) -> None:
    assert of_each("nobody") == of_each("nobody first") == [["returned", "well", False]] * 3


def test_a_fault_of_all_ranks_is_reported_by_rank_0_alone(of_each: Outcome) -> None:
    said = ["UsageError", "'--steps 0 is too few.'", False]
    assert of_each("usage of all") == [said, QUIET_USAGE, QUIET_USAGE]


@pytest.mark.parametrize("block", ["", " first"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("usage of 2", "'rank 2 of 3: --steps 0 is too few.'"),
        ("usage of 1 and 2", "'rank 1 of 3: --lr 0 is out of range.'"),
        ("no text", r"'rank 1 of 3: --data caf\\udce9'"),
    ],
)
def test_a_usage_error_of_a_later_rank_is_said_by_the_first_with_its_number(
    of_each: Outcome, name: str, said: str, block: str
) -> None:
    assert of_each(name + block) == [["UsageError", said, False], QUIET_USAGE, QUIET_USAGE]


def test_two_different_faults_are_both_reported(of_each: Outcome) -> None:
    first, second, third = of_each("two usages")
    assert first == ["UsageError", "'--lr 0'", False]
    assert second == QUIET_USAGE
    assert third == ["UsageError", "'--steps 0'", False]


@pytest.mark.parametrize("block", ["", " first"])
def test_a_full_disk_of_one_rank_fails_all_of_them(of_each: Outcome, block: str) -> None:
    full = "[Errno 28] No space left on device"
    first, second, third = of_each("disk of 1" + block)
    assert first == ["RankLostError", f"'rank 1 of 3: {full}'", False]
    assert second == ["OSError", f"'{full}'", False]
    assert third == QUIET_FAILURE


def test_an_error_in_the_program_keeps_its_traceback_where_it_happened(of_each: Outcome) -> None:
    first, second, third = of_each("no words")
    assert first == ["RankLostError", "'rank 1 of 3: KeyError'", False]
    assert second[0] == "KeyError"
    assert third == QUIET_FAILURE


@pytest.mark.parametrize("name", ["usage of all", "two usages", "disk of 0", "disk of all"])
def test_what_the_first_rank_cannot_do_the_others_do_not_try(of_each: Outcome, name: str) -> None:
    first, *others = of_each(f"{name} first")
    assert first[0] in ("UsageError", "OSError")
    code = USAGE if first[0] == "UsageError" else FAILED
    assert others == [["SystemExit", str(code), True]] * 2


def test_the_first_rank_is_through_the_block_before_the_others_enter(of_each: Outcome) -> None:
    assert of_each("turns") == [False, True, True]


def test_after_any_fault_the_ranks_are_still_in_step(of_each: Outcome) -> None:
    assert of_each("in step") == [True] * 3


def test_a_process_on_its_own_raises_what_it_found() -> None:
    error = OSError("disk")
    with pytest.raises(OSError, match="disk") as caught, World().together():
        raise error
    assert caught.value is error
    with pytest.raises(OSError, match="disk"), World().main_first():
        raise error
    agree(World(), {"--lr": "0.1"})


# ---- agreement --------------------------------------------------------------------------------


def test_ranks_with_the_same_facts_continue(of_each: Outcome) -> None:
    assert of_each("same") == [["returned", None, False]] * 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other", "rank 1 of 3: --lr is 0.1, on rank 0 it is 0.001: start all ranks with the same"),
        ("missing", "rank 2 of 3: --mtp is not given, on rank 0 it is True: start all ranks"),
    ],
)
def test_another_fact_ends_all_ranks_and_both_values_are_named(
    of_each: Outcome, name: str, said: str
) -> None:
    first, *others = of_each(name)
    assert first[0] == "UsageError"
    assert said in first[1]
    assert others == [QUIET_USAGE, QUIET_USAGE]


def test_every_option_is_compared_but_where_the_others_came_from_and_the_device() -> None:
    flags = {flag_name(field.name) for field in dataclasses.fields(Options)}
    apart = {"--config", "--device", "--model"}
    assert set(option_facts(Options())) == flags - apart | {"what --resume finds"}
    model = ModelOverrides(hidden_size=32)
    assert option_facts(Options(model=model))["--model.hidden_size"] == "32"


def test_one_folder_in_two_spellings_is_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spellings = [Path("ck"), Path("./a/../ck"), tmp_path / "ck"]
    found = {option_facts(Options(checkpoint_dir=path))["--checkpoint-dir"] for path in spellings}
    assert found == {str(tmp_path / "ck")}


def corpus_of(*texts: str) -> Corpus:
    documents = [Document(f"{place}.txt", text) for place, text in enumerate(texts)]
    tokenizer = CharTokenizer("".join(sorted(set("".join(texts)))))
    return Corpus.build(documents, tokenizer, seq_len=4, ahead=0)


def start_facts_of(*texts: str, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    return start_facts(corpus_of(*texts), None, dtype)


@pytest.mark.parametrize(
    ("other", "differ"),
    [
        (start_facts_of("abcd" * 40, "dcba" * 40), set()),
        (start_facts_of("dcba" * 40, "abcd" * 40), {"text"}),
        (start_facts_of("abcd" * 40 + "dcba" * 40), {"text"}),
        (start_facts_of("abcd" * 40, "dcbe" * 40), {"text", "tokenizer"}),
        (start_facts_of("abcd" * 40, "dcba" * 40, dtype=torch.bfloat16), {"number"}),
    ],
    ids=["same", "other order", "one document", "another letter", "number format"],
)
def test_start_facts_differ_where_text_tokenizer_or_dtype_differ(
    other: dict[str, str], differ: set[str]
) -> None:
    one = start_facts_of("abcd" * 40, "dcba" * 40)
    assert {name.split()[1] for name in one if one[name] != other[name]} == differ


def test_two_checkpoints_of_one_step_have_different_facts(
    train: Callable[..., int], tmp_path: Path
) -> None:
    found = []
    for run, seed in (("one", 0), ("other", 1)):
        assert train(f"--run={run}", "--steps=1", f"--seed={seed}") == FINISHED
        checkpoint = read_checkpoint(tmp_path / "ck" / run)
        facts = start_facts(corpus_of("abcd" * 40), checkpoint, torch.float32)
        found.append(facts["the checkpoint (--resume)"])
        resumed = Options(resume="auto", run=run, checkpoint_dir=tmp_path / "ck")
        assert option_facts(resumed)["what --resume finds"] == "step 1"
    assert all(fact.startswith("step 1, sha256 ") for fact in found)
    assert found[0] != found[1]


# ---- whole runs -------------------------------------------------------------------------------


def test_ranks_that_agree_train(ran: Ran) -> None:
    codes, said = ran("begun")
    assert codes == [FINISHED, FINISHED], said
    assert said[1] == ""


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("lr", "rank 1 of 2: --lr is 0.1, on rank 0 it is not given: start all ranks with the"),
        ("range", "train.py: --lr 0.0 is out of range"),
        ("nofile", "train.py: --data 'nofile' does not exist: name a file, a folder"),
        ("order", "rank 1 of 2: the text (--data) is sha256 "),
        ("gone", "rank 1 of 2: what --resume finds is nothing, on rank 0 it is step 2: start all"),
    ],
)
def test_whatever_is_wrong_on_any_rank_is_said_once_and_ends_all_with_64(
    ran: Ran, run: str, message: str
) -> None:
    codes, said = ran(run)
    assert codes == [USAGE, USAGE], said
    assert message in said[0]
    assert len(said[0].splitlines()) == 2, "the fault, and where help is"
    assert said[1] == ""


def test_a_rank_that_cannot_meet_the_first_speaks_for_itself(
    train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert train() == USAGE
    said = capsys.readouterr().err
    assert said.startswith("train.py: rank 1 of 2: RANK=1 and WORLD_SIZE=2 are set, but the ranks")
    assert len(said.splitlines()) == 1
