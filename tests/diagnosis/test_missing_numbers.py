"""What a log lacks is never computed from a guess: rules that need it are blind and report it."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from microscope_tui import measures
from microscope_tui.diagnosis import Severity, StepView
from microscope_tui.runlog import RouterInfo, StepRecord
from microscope_tui.screens.main.as_text import snapshot_text
from tests.conftest import header, open_log, step
from tests.diagnosis.conftest import COLLAPSED, Record, even, judge, of, steps

OF_BALANCE = {"COLLAPSE", "SHOCK", "ERODING", "HOT_EXPERT"}
UNKNOWN_K = {"top_k": None}
ONE = {"layers": [0], "layer_names": ["all layers"], "num_experts": 0, "top_k": None}
SUMMARIES: dict[str, Any] = {"model": ONE, "source": {"writer": "test", "counts": "none"}}


def loads(first: int, last: int, load: float) -> list[Record]:
    numbers = range(first, last + 1)
    return [{"kind": "step", "step": n, "router": {"max_load": [load]}} for n in numbers]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(-1, 9))
def test_a_collapse_index_needs_a_known_k_below_e(row: list[int], top_k: int) -> None:
    index = measures.balance(row, top_k).collapse_index
    assert (index is not None) == (any(row) and 0 < top_k < len(row))


@pytest.mark.parametrize(
    ("row", "usable", "whole"),
    [
        ([1, 0, 2, 3], True, True),
        ([1, 0, 2], True, False),
        ([1, -1, 2, 3], False, False),
        ([1 << 49, 1 << 49, 0, 0], False, False),
        ([], False, False),
    ],
)
def test_a_row_is_counts_if_it_is_possible_and_full_if_every_expert_has_one(
    row: list[int], usable: bool, whole: bool
) -> None:
    view = StepView(StepRecord(1), (RouterInfo("L1", 1, 4, 1),), lambda index: row)
    assert view.counts(0) == (row if usable else None)
    assert view.full_counts(0) == (row if whole else None)
    assert view.has_counts == usable


@pytest.mark.parametrize(
    ("row", "expected"),
    [(None, set()), ([512] * 8, set()), (COLLAPSED, {"STARVED"})],
    ids=["even", "equal", "collapsed"],
)
def test_without_top_k_no_rule_guesses_it(row: list[int] | None, expected: set[str]) -> None:
    sick = (lambda n: row) if row else even
    diagnosis = judge([header(model=UNKNOWN_K), *steps(1, 250, sick)])
    assert {episode.rule for episode in diagnosis.episodes} - {"OVERLOAD"} == expected
    blind = diagnosis.blind_spots()
    assert blind.keys() >= OF_BALANCE | {"DEAD", "BIAS_RUNAWAY"}
    assert "--top-k" in blind["COLLAPSE"]


def test_without_top_k_a_run_is_not_called_healthy(judged: Any) -> None:
    judgement = judged([header(model=UNKNOWN_K), *steps(1, 250)])
    assert (judgement.exit_code, judgement.findings) == (3, [])
    assert "--top-k" in str(judgement.problem)
    sick = judged([header(model=UNKNOWN_K), *steps(1, 250, lambda n: COLLAPSED)])
    assert (sick.exit_code, sick.problem) == (1, None)  # what needs no k still counts


def test_a_router_without_top_k_leaves_the_others_judged() -> None:
    run = header(model={"top_k": [None, 2, 2]})
    diagnosis = judge([run, *steps(1, 200, lambda n: COLLAPSED)])
    assert of(diagnosis, "COLLAPSE").router_index == 1
    assert "COLLAPSE" not in diagnosis.blind_spots()


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([None, 0, [None, 1, 2], [0, 0, 8]]),
    st.sampled_from(["exact", "top1", "shares", "local_rank", "none", "other"]),
    st.sets(st.sampled_from(["tokens", "router", "tokens_per_expert"])),
    st.integers(0, 10**6),
)
def test_whatever_is_missing_nothing_fails_and_everything_can_be_drawn(
    write_log: Any, top_k: Any, counts: str, lacks: set[str], seed: int
) -> None:
    rng, records = random.Random(seed), []
    for n in range(1, 40):
        rows = [[rng.choice([0, 1, 5, 400]) for _ in range(8)] for _ in range(3)]
        extra = {"selected_mass": [0.5] * 3, "entropy": [2.0] * 3, "mean_entropy": [2.07] * 3}
        record = step(n, rows, 100, router=extra, losses={"aux": 0.0})
        records.append({key: value for key, value in record.items() if key not in lacks})
    run = header(model={"top_k": top_k}, source={"writer": "test", "counts": counts})
    watch = open_log(write_log([run, *records]))
    assert watch.defects.count == 0, watch.defects.first
    assert watch.diagnosis is not None
    text = snapshot_text(watch, 80, 24)
    if lacks >= {"tokens_per_expert"}:
        assert "no counts" in text
    if top_k in (None, 0) and "router" not in lacks:
        assert "k unknown" in text


@pytest.mark.parametrize(
    ("capacity", "ranks", "severity", "code"),
    [(None, 1, Severity.INFO, 3), (1.25, 1, Severity.WARN, 1), (None, 8, Severity.WARN, 1)],
)
def test_the_largest_load_alone_shows_an_overload_and_nothing_else(
    judged: Any, capacity: float | None, ranks: int, severity: Severity, code: int
) -> None:
    model = ONE | ({"capacity_factor": capacity} if capacity else {})
    run = header(**SUMMARIES | {"model": model}, expert_parallel_size=ranks)
    judgement = judged([run, *loads(1, 250, 1.5), *loads(251, 300, 6.0)])
    ((finding, advice),) = judgement.findings
    assert (finding.rule, finding.severity, finding.onset) == ("OVERLOAD", severity, 251)
    assert judgement.exit_code == code
    assert advice.next.startswith("Watch memory and step time" if code == 1 else "Nothing, while")


def test_rules_that_need_more_than_the_largest_load_are_listed(judged: Any) -> None:
    judgement = judged([header(**SUMMARIES), *loads(1, 300, 1.5)])
    assert (judgement.exit_code, judgement.findings) == (3, [])
    words = "max_load alone shows only an overload: log counts or effective_experts"
    assert judgement.problem == words
    (blind,) = (note for note in judgement.notes if note.startswith("COLLAPSE"))
    assert set(blind.split(" are ")[0].split(", ")) >= OF_BALANCE
    assert "counts or effective_experts" in blind
    assert [note for note in judgement.notes if note.startswith("DEAD is not observable")]
    assert "the log has summaries per step and no counts per expert" in judgement.notes


@pytest.mark.parametrize("experts", [8, 256])
def test_noise_of_small_batches_of_unknown_size_is_not_an_overload(experts: int) -> None:
    rng = random.Random(experts)
    records = [header(**SUMMARIES, expert_parallel_size=8)]
    for n in range(1, 401):
        row = [0] * experts
        for _ in range(2 * experts):  # two assignments an expert: MaxVio of 2 and more by chance
            row[rng.randrange(experts)] += 1
        records += loads(n, n, measures.max_load(row) or 0.0)
    assert judge(records).episodes == []
