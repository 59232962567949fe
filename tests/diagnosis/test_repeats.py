"""Counts that repeat are old ones, unless one batch repeats; a collapse keeps its verdict."""

from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from microscope_tui.diagnosis import Criteria, Severity
from tests.conftest import header, step
from tests.diagnosis.conftest import even, judge, loud, of, steps

NOISE = {"loss": lambda n: 2.0 + n * 7 % 11 / 100}
"""Every batch has another loss."""


def stale(n: int, since: int = 100, lines: int = 10**6) -> list[int]:
    """From a step on a buffer is filled only once in so many lines."""
    return even(n if n < since else since + (n - since) // lines * lines)


@pytest.mark.parametrize("lines", [10**6, 20, 5])
def test_a_row_that_repeats_is_a_fault_of_the_meter(lines: int) -> None:
    records = [header(), *steps(1, 400, lambda n: stale(n, 100, lines), **NOISE)]
    found = of(judge(records), "METER")
    known = (found.severity, found.router_index, found.facts["cause"])
    assert known == (Severity.ERROR, 1, "repeated")
    assert 100 <= found.onset <= 130
    assert found.alarm <= 200


def test_a_buffer_that_is_filled_again_is_sound() -> None:
    records = [header(), *steps(1, 400, lambda n: stale(n) if n < 250 else even(n), **NOISE)]
    assert 250 <= (of(judge(records), "METER").recovered_at or 0) <= 320


@pytest.mark.parametrize(("length", "found"), [(200, set()), (300, {"shared"})])
def test_two_layers_with_the_same_rows_read_one_buffer(length: int, found: set[str]) -> None:
    records = [header(), *steps(1, length, lambda n: even(n, 1))]  # that of the first layer
    episodes = loud(judge(records))
    assert {(e.rule, e.facts["cause"]) for e in episodes} == {("METER", cause) for cause in found}
    assert [e.router_index for e in episodes] == [0, 1] * len(found)


def test_two_experts_that_are_always_chosen_together_are_a_tie() -> None:
    def tied(n: int) -> list[int]:
        row = even(n)
        return [row[0] + row[6] - row[2], *row[1:6], row[2], row[7]]

    (found,) = loud(judge([header(), *steps(1, 300, tied)]))
    assert (found.facts["cause"], found.facts["experts"]) == ("tied", (2, 6))


@pytest.mark.parametrize(
    ("changes", "profile", "severity"),
    [
        ({**NOISE, "learning_rate": lambda n: 0.0}, "pretrain", Severity.INFO),
        (NOISE, "eval", Severity.INFO),
        ({"loss": lambda n: 0.5 * 0.999**n}, "pretrain", Severity.INFO),  # overfitted
        ({**NOISE, "learning_rate": lambda n: 1e-4}, "pretrain", Severity.ERROR),
    ],
)
def test_one_batch_again_and_again_is_information(
    changes: dict[str, Any], profile: str, severity: Severity
) -> None:
    records = [header(profile=profile), *steps(1, 150, lambda n: even(1), **changes)]
    for record in records[1:]:
        record["tokens_per_expert"] = [even(1, router) for router in range(3)]
    found = [e for e in judge(records).episodes if e.rule == "METER"]
    assert [e.severity for e in found] == [severity] * 3


def test_a_layer_that_repeats_at_a_rate_of_zero_is_a_fault_if_the_others_do_not() -> None:
    records = [header(), *steps(1, 150, stale, learning_rate=lambda n: 0.0)]
    assert of(judge(records), "METER").severity is Severity.ERROR


@settings(max_examples=12)
@given(st.sampled_from([(8, 2), (32, 4), (64, 8), (16, 1)]), st.floats(0, 0.4), st.integers(0, 30))
@example((8, 2), 0.0, 0)  # a total collapse
def test_a_collapse_keeps_its_verdict_though_its_rows_repeat(
    size: tuple[int, int], width: float, strays: int
) -> None:
    """All tokens on a few experts, the same ones in three layers, line after line."""
    experts, top_k = size
    busy = top_k + round(width * (experts - top_k))
    row = [2048 * top_k // busy] * busy + [0] * (experts - busy)
    row[-1] = min(strays, row[0])
    row[0] += 2048 * top_k - sum(row)
    run = header(model={"num_experts": experts, "top_k": top_k})
    records = [run, *(step(n, [row] * 3, 2048, loss=NOISE["loss"](n)) for n in range(1, 250))]
    alone = judge(records, Criteria(ignore=frozenset({"METER"})))
    assert [e for e in alone.episodes if e.rule in ("COLLAPSE", "DEAD")] != []
    assert judge(records).episodes == alone.episodes


def test_an_expert_that_every_sequence_uses_once_is_not_a_tie() -> None:
    def starting(n: int) -> list[int]:
        row = even(n)
        return [16, 16, row[2] + row[0] - 16, row[3] + row[1] - 16, *row[4:]]

    assert "METER" not in {e.rule for e in judge([header(), *steps(1, 400, starting)]).episodes}
