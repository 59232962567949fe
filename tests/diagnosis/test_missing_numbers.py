"""What a log lacks is never computed from a guess: rules that need it are blind and say so."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microscope_tui import measures
from microscope_tui.diagnosis import Severity
from microscope_tui.lines import snapshot_text
from microscope_tui.report import CheckRequest, Judgement, judge
from microscope_tui.runlog import RunFile
from tests.diagnosis.conftest import COLLAPSED, of

Make = Callable[..., Any]
OF_BALANCE = {"COLLAPSE", "SHOCK", "ERODING", "HOT_EXPERT"}
UNKNOWN_K = {"top_k": None}
SUMMARIES = {"writer": "test", "counts": "none"}
ONE = {"layers": [0], "layer_names": ["all layers"], "num_experts": 0, "top_k": None}


@pytest.fixture
def judged(write_log: Any) -> Callable[[Sequence[Any]], Judgement]:
    def read(records: Sequence[Any]) -> Judgement:
        path = write_log(records)
        return judge(RunFile("run", path, 0.0), CheckRequest())

    return read


def loads(first: int, last: int, load: float) -> list[dict[str, Any]]:
    """Steps with nothing but ``max_load``."""
    steps = range(first, last + 1)
    return [{"kind": "step", "step": n, "router": {"max_load": [load]}} for n in steps]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(-1, 9))
def test_there_is_a_collapse_index_only_where_k_is_known_and_below_e(
    row: list[int], top_k: int
) -> None:
    index = measures.balance(row, top_k).collapse_index
    assert (index is not None) == (any(row) and 0 < top_k < len(row))


@pytest.mark.parametrize("row", [None, COLLAPSED, [512] * 8], ids=["even", "collapsed", "equal"])
def test_without_top_k_no_rule_guesses_it(
    judge: Make, steps: Make, make_header: Make, row: list[int] | None
) -> None:
    diagnosis = judge(
        [make_header(model=UNKNOWN_K), *steps(1, 400, (lambda n: row) if row else None)]
    )
    found = {episode.rule for episode in diagnosis.episodes}
    assert found <= {"STARVED", "OVERLOAD"}
    assert ("STARVED" in found) == (row == COLLAPSED)
    blind = diagnosis.blind_spots()
    assert blind.keys() >= OF_BALANCE | {"DEAD", "BIAS_RUNAWAY"}
    assert "--top-k" in blind["COLLAPSE"]


def test_without_top_k_a_run_is_not_called_healthy(
    judged: Make, steps: Make, make_header: Make
) -> None:
    judgement = judged([make_header(model=UNKNOWN_K), *steps(1, 400)])
    assert (judgement.exit_code, judgement.findings) == (3, [])
    assert "--top-k" in str(judgement.problem)
    sick = judged([make_header(model=UNKNOWN_K), *steps(1, 400, lambda n: COLLAPSED)])
    assert (sick.exit_code, sick.problem) == (1, None)  # what needs no k still counts


def test_a_router_without_top_k_leaves_the_others_judged(
    judge: Make, steps: Make, make_header: Make
) -> None:
    run = make_header(model={"top_k": [None, 2, 2]})
    diagnosis = judge([run, *steps(1, 300, lambda n: COLLAPSED)])
    assert of(diagnosis, "COLLAPSE").router_index == 1
    assert "COLLAPSE" not in diagnosis.blind_spots()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([None, 0, [None, 1, 2], [0, 0, 8]]),
    st.sampled_from(["exact", "top1", "shares", "local_rank", "none", "other"]),
    st.sets(st.sampled_from(["tokens", "router", "tokens_per_expert"])),
    st.integers(0, 10**6),
)
def test_whatever_is_missing_nothing_fails_and_everything_can_be_drawn(
    write_log: Any, open_log: Any, make_header: Any, make_step: Any,
    top_k: Any, counts: str, lacks: set[str], seed: int,
) -> None:  # fmt: skip
    rng, records = random.Random(seed), []
    for n in range(1, 40):
        rows = [[rng.choice([0, 1, 5, 400]) for _ in range(8)] for _ in range(3)]
        extra = {"selected_mass": [0.5] * 3, "entropy": [2.0] * 3, "mean_entropy": [2.07] * 3}
        record = make_step(n, rows, 100, router=extra, losses={"aux": 0.0})
        records.append({key: value for key, value in record.items() if key not in lacks})
    run = make_header(model={"top_k": top_k}, source={"writer": "test", "counts": counts})
    watch = open_log(write_log([run, *records]))
    assert watch.defects.count == 0, watch.defects.first
    assert watch.diagnosis is not None
    text = snapshot_text(watch, 80, 24)
    if lacks >= {"tokens_per_expert"}:
        assert "no counts" in text
    if top_k in (None, 0) and "router" not in lacks:
        assert "k unknown" in text


@pytest.mark.parametrize(
    ("ranks", "severity", "code"), [(1, Severity.INFO, 3), (8, Severity.WARN, 1)]
)
def test_the_largest_load_alone_shows_an_overload_and_nothing_else(
    judged: Make, make_header: Make, ranks: int, severity: Severity, code: int
) -> None:
    run = make_header(model=ONE, source=SUMMARIES, expert_parallel_size=ranks)
    calm = judged([run, *loads(1, 400, 1.5)])
    assert (calm.exit_code, calm.findings) == (3, [])
    assert calm.problem == "max_load alone shows only an overload: log counts or effective_experts"
    judgement = judged([run, *loads(1, 250, 1.5), *loads(251, 400, 6.0)])
    ((finding, _),) = judgement.findings
    assert (finding.rule, finding.severity, finding.onset) == ("OVERLOAD", severity, 251)
    assert judgement.exit_code == code


def test_rules_that_need_more_than_the_largest_load_are_listed(
    judged: Make, make_header: Make
) -> None:
    judgement = judged([make_header(model=ONE, source=SUMMARIES), *loads(1, 400, 1.5)])
    (blind,) = (note for note in judgement.notes if note.startswith("COLLAPSE"))
    assert set(blind.split(" are ")[0].split(", ")) >= OF_BALANCE
    assert "counts or effective_experts" in blind
    assert [note for note in judgement.notes if note.startswith("DEAD is not observable")]
    assert "the log has summaries per step and no counts per expert" in judgement.notes


@pytest.mark.parametrize("experts", [8, 64, 256])
def test_noise_of_small_batches_is_no_overload_where_their_size_is_unknown(
    judge: Make, make_header: Make, experts: int
) -> None:
    rng = random.Random(experts)
    records = [make_header(model=ONE, source=SUMMARIES, expert_parallel_size=8)]
    for n in range(1, 601):
        row = [0] * experts
        for _ in range(2 * experts):  # two assignments an expert: MaxVio of 2 and more by chance
            row[rng.randrange(experts)] += 1
        load = measures.max_load(row)
        records.append({"kind": "step", "step": n, "router": {"max_load": [load]}})
    assert judge(records).episodes == []


@pytest.mark.parametrize(("counts", "fault"), [("exact", True), ("shares", False)])
def test_even_shares_are_not_taken_for_forced_balance(
    judge: Make, make_header: Make, make_step: Make, counts: str, fault: bool
) -> None:
    rows = [[125_000] * 8] * 3
    records = [make_step(n, rows, 500_000) for n in range(1, 200)]
    diagnosis = judge([make_header(source={"writer": "test", "counts": counts}), *records])
    assert ({episode.rule for episode in diagnosis.episodes} == {"METER"}) == fault


@pytest.mark.parametrize("counts", ["top1", "shares", "local_rank", "none", "odd"])
def test_each_kind_of_counts_has_one_clear_sentence(
    judged: Make, make_header: Make, steps: Make, counts: str
) -> None:
    run = make_header(model={"top_k": 2}, source={"writer": "test", "counts": counts})
    notes = judged([run, *steps(1, 5)]).notes
    about = [note for note in notes if "counts" in note or "counted" in note]
    assert about
    assert not [note for note in about if "not exact" in note]
