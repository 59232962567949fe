"""METER: counts and summaries that no choice of k experts a token can give."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis, Episode, Severity
from tests.diagnosis.conftest import COLLAPSED

Make = Callable[..., Any]
IMPOSSIBLE = [3900, 100, 16, 16, 16, 16, 16, 16]  # of 2,048 tokens that choose two experts each


def loud(diagnosis: Diagnosis) -> list[Episode]:
    """Episodes that are more than information."""
    return [e for e in diagnosis.episodes if e.severity > Severity.INFO]


@pytest.mark.parametrize("onset", [5, 240])
def test_more_pairs_of_an_expert_than_tokens_are_a_meter_fault_and_no_collapse(
    judge: Make, steps: Make, make_header: Make, balanced: Make, onset: int
) -> None:
    sick = lambda n: IMPOSSIBLE if n >= onset else balanced()  # noqa: E731
    (episode,) = loud(judge([make_header(), *steps(1, onset + 80, sick)]))
    assert (episode.rule, episode.severity) == ("METER", Severity.ERROR)
    assert (episode.facts["cause"], episode.facts["experts"]) == ("above", (0,))
    assert (episode.router.name, episode.onset) == ("L2", onset)
    assert episode.alarm <= onset + 3


@pytest.mark.parametrize("summary", ["effective_experts", "max_load"])
def test_summaries_that_no_two_choices_can_give_are_a_meter_fault(
    judge: Make,
    make_header: Make,
    make_step: Make,
    balanced: Make,
    summary: str,
) -> None:
    records = [make_header(source={"counts": "none"})]
    for n in range(1, 400):
        sick = IMPOSSIBLE if 200 <= n < 300 else balanced()
        record = make_step(n, [balanced(), sick, balanced()], 2048)
        del record["tokens_per_expert"]
        if summary == "max_load" and 200 <= n < 300:
            record["router"]["effective_experts"][1] = 2.4
        records.append(record)
    diagnosis = judge(records)
    (episode,) = [e for e in diagnosis.episodes if e.rule == "METER"]
    cause = {"effective_experts": "effective", "max_load": "load"}[summary]
    assert (episode.facts["cause"], episode.onset, episode.recovered_at) == (cause, 200, 300)
    assert [e for e in loud(diagnosis) if e.rule == "COLLAPSE" and e.alarm < 303] == []


@pytest.mark.parametrize(
    ("counts", "fault"),
    [("exact", True), ("shares", True), ("none", True), ("top1", False), ("local_rank", False)],
)
def test_what_is_impossible_depends_on_what_the_counts_are(
    judge: Make, make_header: Make, make_step: Make, counts: str, fault: bool
) -> None:
    first_choices = [1500, 300, 60, 60, 40, 40, 24, 24]  # 1.9 of 8 effective, none above tokens
    records = [make_header(source={"counts": counts})]
    for n in range(1, 200):
        record = make_step(n, [first_choices] * 3, 2048)
        if counts in ("exact", "none"):
            del record["tokens_per_expert"]
        records.append(record)
    rules = {e.rule for e in judge(records).episodes}
    assert ("METER" in rules) == fault
    assert ("COLLAPSE" in rules) != fault


@pytest.mark.parametrize("counts", ["exact", "top1", "local_rank"])
def test_no_source_has_more_pairs_of_an_expert_than_tokens(
    judge: Make, make_header: Make, make_step: Make, counts: str
) -> None:
    rows = [[2100, 1500, 100, 96, 90, 80, 70, 60]] * 3
    records = [make_header(source={"counts": counts})]
    records += [make_step(n, rows, 2048) for n in range(1, 60)]
    (found,) = {e.facts["cause"] for e in loud(judge(records))}
    assert found == "above"


def test_a_collapse_on_exactly_k_experts_is_possible(
    judge: Make, steps: Make, make_header: Make
) -> None:
    def rounded(n: int) -> dict[str, Any]:  # a writer that rounds what it sums up
        return {"effective_experts": [7.9, 1.99, 7.9], "max_load": [1.05, 4.01, 1.05]}

    (episode,) = loud(judge([make_header(), *steps(1, 200, lambda n: COLLAPSED, router=rounded)]))
    assert episode.rule == "COLLAPSE"
