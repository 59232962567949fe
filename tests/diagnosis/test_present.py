"""How bad it was at worst, how it is now, and what was usual before: three different moments."""

from typing import Any

import pytest

from microscope_tui.diagnosis import Advice, Diagnosis, report, restore, save
from microscope_tui.draw.findings import finding_json
from microscope_tui.screens.alerts.text import AlertState, Entry, unfolded
from tests.conftest import header
from tests.diagnosis.conftest import COLLAPSED, about, even, judge, of, steps, without_expert

HALF_WAY = [1400, 1400, 616, 400, 200, 60, 10, 10]
"""About half of the experts: c = 0.40, too little to count as recovered."""


def advised(diagnosis: Diagnosis, rule: str, step: int | None = None) -> Advice:
    episodes = diagnosis.episodes
    if step is not None:
        episodes = [e.as_of(step) for e in episodes if e.onset <= step]
    (advice,) = [advice for f, advice in report(diagnosis, episodes) if f.rule == rule]
    return advice


def sick_then(after: Any) -> Diagnosis:
    sick: Any = lambda n: even(n) if n < 200 else COLLAPSED if n < 300 else after(n)  # noqa: E731
    return judge([header(), *steps(1, 440, sick)])


@pytest.fixture
def relieved() -> Diagnosis:
    return sick_then(lambda n: HALF_WAY)


def test_the_worst_and_the_present_are_reported_with_their_steps(relieved: Diagnosis) -> None:
    words = advised(relieved, "COLLAPSE")
    worst, _, now = words.why.partition(" Now ")
    assert worst.startswith("At worst (step 2")
    assert "2.0 of 8 experts effective (8.0 before); experts 0, 1 take 100% of the load" in worst
    assert now.startswith("(step 440): 4.4 of 8 experts effective; experts 0, 1 take 68% of the ")
    assert now.endswith("load in the last 30 steps.")
    assert words.short.endswith(": now 4.4 of 8 experts effective")


def test_json_and_the_unfolded_alert_have_the_worst_and_the_present(relieved: Diagnosis) -> None:
    (finding,) = [f for f in relieved.findings() if f.rule == "COLLAPSE"]
    data = finding_json(finding, advised(relieved, "COLLAPSE"))
    assert (data["value"], data["now"]["step"]) == (pytest.approx(0.0), 440)
    assert data["worst_at"] < 300
    assert data["now"]["value"] == pytest.approx(0.4, abs=0.02)
    assert data["now"]["experts"] == [0, 1]
    entry = Entry(finding, advised(relieved, "COLLAPSE"), AlertState.ACTIVE, "key", seen=False)
    text = "\n".join("".join(span.text for span in line) for line in unfolded(entry, 80, 30))
    assert "0 < 0.15, the worst in L2; 0.402 now" in text


def test_at_an_earlier_step_the_present_of_the_end_is_not_reported(relieved: Diagnosis) -> None:
    assert "Now (step" not in advised(relieved, "COLLAPSE", 280).why
    assert of(relieved, "COLLAPSE").as_of(280).now is None
    assert of(relieved, "COLLAPSE").as_of(440).now == of(relieved, "COLLAPSE").now


@pytest.mark.parametrize(
    ("rule", "router", "now"),
    [
        ("LOGITS", lambda n: {"z_loss": [4.0 if n < 200 else 80.0 if n < 300 else 24.0] * 3},
         "the z-loss is 6.0 times its median before step 200 (24 against 4)."),
        ("OVERLOAD", lambda n: {"max_load": [1.5 if n < 250 else 3.9 if n < 300 else 3.5] * 3},
         "the busiest expert has 3.5 times its fair share (1.5 after the warm-up)."),
    ],
)  # fmt: skip
def test_the_present_is_compared_with_what_was_usual(rule: str, router: Any, now: str) -> None:
    capacity = {"model": {"capacity_factor": 4.0}}
    diagnosis = judge([header(**capacity), *steps(1, 340, router=router)])
    assert advised(diagnosis, rule).why.endswith(f"Now (step 340): {now}")


def test_every_dead_expert_has_its_own_date_and_one_that_came_back_is_named() -> None:
    def sick(n: int) -> list[int]:
        row = without_expert(even(n), 3) if n >= 201 else even(n)
        row = without_expert(row, 1) if 321 <= n < 361 else row  # too short to be reported
        return without_expert(row, 6) if 273 <= n < 651 else row

    worst, _, now = advised(judge([header(), *steps(1, 800, sick)]), "DEAD").why.partition(" Now ")
    assert "2 of 8 experts (3, 6, since steps 201 to 273) received no tokens for at least" in worst
    assert now.endswith(
        "for at least 600 steps; expert 6 came back by itself at step 649: look at the data."
    )
    again = [*steps(1, 650, sick), header(resumed_at_step=651), *steps(651, 800, sick)]
    assert "by itself" not in advised(judge([header(), *again]), "DEAD").why
    later: Any = lambda n: without_expert(sick(n), 1) if n >= 401 else sick(n)  # noqa: E731
    why = advised(judge([header(), *steps(1, 640, later)]), "DEAD").why
    assert "3 of 8 experts (1, 3, 6, since steps 201 to 401, one more every 100 steps)" in why


def test_the_fullest_expert_and_the_busiest_rank_are_named() -> None:
    busy = about([400, 400, 400, 900, 1196, 400, 200, 200])
    full = steps(1, 240, busy, router=lambda n: {"drop_rate": [0.0, 0.3, 0.0]})
    diagnosis = judge([header(expert_parallel_size=4), *full])
    why = advised(diagnosis, "DROPS").why
    assert why == "up to 30% of the assignments are dropped, most by expert 4 (limit 20%)."
    assert "which expert" not in advised(diagnosis, "DROPS").next
    assert advised(diagnosis, "OVERLOAD").why.startswith("rank 2 (experts 4 to 5) of 4 ")


HELD = "expert 3 has held the overflow since step 100: look at its tokens (padding"


@pytest.mark.parametrize(
    ("busiest", "starved", "since"),
    [
        (lambda n: 3, 300, HELD),
        (lambda n: 3, 10, HELD),  # not the balancing, although another one starves
        (lambda n: n // 8 % 8, 300, ""),  # another one every eight steps
    ],
)
def test_one_expert_that_overflows_alone_is_named_instead_of_a_larger_capacity(
    busiest: Any, starved: int, since: str
) -> None:
    def sick(n: int) -> list[int]:
        row = [(starved if e == 6 else 350) + (n + e) % 7 for e in range(8)]
        row[busiest(n)] += 4096 - sum(row)
        return row if n >= 100 else even(n)

    drops = {"drop_rate": [0.0, 0.36, 0.0]}
    diagnosis = judge([header(), *steps(1, 240, sick, router=lambda n: drops if n >= 100 else {})])
    advice = advised(diagnosis, "DROPS")
    assert advice.cause == ("one expert overflows" if since else "capacity too small")
    assert advice.next.lower().startswith(since or "raise the capacity factor")


def test_other_experts_that_rest_now_are_not_counted_as_dead() -> None:
    def sick(n: int) -> list[int]:
        row = without_expert(even(n), 3 if n < 450 else 1)
        return even(n) if n < 200 else without_expert(row, 6) if n < 450 else row

    why = advised(judge([header(), *steps(1, 468, sick)]), "DEAD").why
    assert "2 of 8 experts (3, 6) received no tokens" in why
    assert "no tokens for at least 2" in why  # steps: since 200, at least to 440
    assert "0 of 8" not in why
    assert why.endswith("Now (step 464): inside the limits; 1 more such evaluation ends it.")


@pytest.mark.parametrize("after", [even, lambda n: COLLAPSED], ids=["recovered", "as bad as ever"])
def test_what_is_over_or_no_worse_than_noise_is_reported_once(after: Any) -> None:
    diagnosis = sick_then(after)
    assert (of(diagnosis, "COLLAPSE").now is None) == (after is even)
    assert "Now" not in advised(diagnosis, "COLLAPSE").why


def test_the_present_is_saved_and_forgotten_in_a_restart(relieved: Diagnosis) -> None:
    again = restore(save(relieved), relieved.run)
    assert of(again, "COLLAPSE").now == of(relieved, "COLLAPSE").now
    again.restart(400)
    assert (of(again, "COLLAPSE").active, of(again, "COLLAPSE").now) == (True, None)
