"""The words: what, since when, why with numbers, and a remedy that fits this very run."""

from typing import Any

import pytest

from microscope_tui.diagnosis import Episode, Finding, Severity, advise, group
from microscope_tui.runlog import RouterInfo, RunRecord


def episode(index: int = 0, rule: str = "COLLAPSE", **changes: Any) -> Episode:
    fields: dict[str, Any] = {
        "rule": rule,
        "router_index": index,
        "router": RouterInfo(f"L{index + 1}", index + 1, 64, 8),
        "severity": Severity.CRITICAL,
        "onset": 11960,
        "alarm": 11990,
        "last": 12410,
        "value": 0.02,
        "limit": 0.15,
        "facts": {"effective": 8.7, "usual": 58.1, "share": 0.97, "experts": tuple(range(8))},
        "confidence": "exact counts",
    }
    return Episode(**(fields | changes))


def run(**balance: Any) -> RunRecord:
    return RunRecord(run="r", routers=(), balance=balance)


def test_a_collapse_is_described_in_three_lines() -> None:
    advice = advise(
        Finding((episode(),)), run(method="bias", bias_update_rate=0.001), [11800, 11900, 12000]
    )
    assert advice.verdict == "Router collapse in L1 since step 11,960"
    assert advice.why.startswith(
        "8.7 of 64 experts effective (58.1 before); experts 0, 1, 2, 3, 4, 5 and 2 more take 97%"
    )
    assert advice.next == (
        "Raise bias_update_rate from 0.001 to 0.003 and go back to before step 11,960 "
        "(a checkpoint was written at 11,900)."
    )


@pytest.mark.parametrize(
    ("balance", "remedy"),
    [
        ({"method": "bias", "bias_update_rate": 0.01}, "raise bias_update_rate from 0.01 to 0.03"),
        ({"method": "bias", "bias_update_rate": 0.0}, "set bias_update_rate above zero"),
        ({"method": "aux", "aux_weight": 0.002}, "raise aux_weight from 0.002 to 0.006"),
        ({"method": "none"}, "enable a balancing method"),
        ({}, "strengthen the load balancing"),
    ],
)
def test_the_remedy_names_the_knob_that_this_run_has(balance: Any, remedy: str) -> None:
    assert remedy in advise(Finding((episode(),)), run(**balance)).next.lower()


def profiled(profile: str, **balance: Any) -> RunRecord:
    return RunRecord(run="r", routers=(), profile=profile, balance=balance)


def test_a_fine_tuning_is_not_sent_back_for_experts_that_it_is_told_to_keep() -> None:
    dead = Finding((episode(rule="DEAD", facts={"experts": (3,)}),))
    assert "go back" not in advise(dead, profiled("finetune", method="bias")).next
    assert "go back" in advise(dead, profiled("pretrain", method="bias")).next


@pytest.mark.parametrize("balance", [{"method": "none"}, {"method": "bias"}])
def test_an_evaluation_gets_no_advice_about_training(balance: Any) -> None:
    words = advise(Finding((episode(),)), profiled("eval", **balance)).next
    assert not any(knob in words for knob in ("bias_update_rate", "balancing", "go back"))


@pytest.mark.parametrize(
    ("balance", "remedy"),
    [
        ({"method": "bias", "bias_update_rate": 0.02}, "lower bias_update_rate from 0.02 to 0.01"),
        ({"method": "bias"}, "lower bias_update_rate, or average"),
        ({"method": "none"}, "no enabled balancing could overshoot"),
        ({"method": "quantile"}, "if these layers are balanced, weaken"),
        ({}, "if these layers are balanced, weaken"),
    ],
)
def test_only_a_balancing_that_is_there_is_weakened(balance: Any, remedy: str) -> None:
    swing = episode(rule="OSCILLATION", severity=Severity.WARN, facts={"period": 2.0})
    assert remedy in advise(Finding((swing,)), run(**balance)).next.lower()


def test_two_rules_turn_the_same_knob_to_the_same_value() -> None:
    settings = {"method": "bias", "bias_update_rate": 0.001}
    runaway = episode(rule="BIAS_RUNAWAY", severity=Severity.WARN, facts={"slope": 1.0, "c": 0.1})
    for found in (episode(), runaway):
        words = advise(Finding((found,)), run(**settings)).next
        assert words.startswith("Raise bias_update_rate from 0.001 to 0.003")


def test_of_several_layers_the_numbers_say_whose_they_are() -> None:
    one, other = episode(facts={"effective": 2.0}), episode(2, facts={"effective": 2.0})
    assert advise(Finding((other, one)), run()).why.startswith("In L3: 2.0 of 64 experts")
    assert advise(Finding((one,)), run()).why.startswith("2.0 of 64 experts")


def test_without_a_checkpoint_before_the_onset_none_is_named() -> None:
    advice = advise(Finding((episode(),)), run(), [12000])
    assert advice.next.endswith("before step 11,960 (the log has no checkpoint that old).")
    assert advise(Finding((episode(),)), run()).next.endswith("go back to before step 11,960.")


def test_the_same_trouble_in_several_layers_is_one_finding_that_names_them() -> None:
    findings = group(
        [episode(i, onset=11960 + 10 * i) for i in range(5)] + [episode(7, onset=20000)]
    )
    assert [finding.layers for finding in findings] == [("L1", "L2", "L3", "L4", "L5"), ("L8",)]
    assert "in L1, L2 and 3 more layers since step 11,960" in advise(findings[0], run()).verdict


def test_a_recovered_episode_says_when_and_asks_for_nothing() -> None:
    advice = advise(Finding((episode(recovered_at=12500),)), run(method="none"))
    assert advice.verdict.endswith("from step 11,960 to 12,500, recovered")
    assert advice.next.startswith("Nothing now; if it returns: ")


def test_nobody_is_told_to_prune_a_dead_expert() -> None:
    dead = episode(rule="DEAD", value=3.0, facts={"experts": (3, 5, 9), "share": 0.05})
    advice = advise(Finding((dead,)), run(method="bias", bias_update_rate=0.001))
    assert "3 of 64 experts (3, 5, 9)" in advice.why
    assert "prune" not in (advice.why + advice.next).lower()


@pytest.mark.parametrize("cause", ["non-finite", "multiple", "sum", "width", "forced"])
def test_every_meter_fault_has_its_own_words(cause: str) -> None:
    facts = {"cause": cause, "reading": "loss", "total": 8192.0, "expected": 4096.0}
    advice = advise(Finding((episode(rule="METER", severity=Severity.ERROR, facts=facts),)), run())
    assert advice.verdict.startswith("Meter fault in L1")
    assert len(advice.why) > 20
    assert advice.next.endswith(".")


def test_active_trouble_stands_before_recovered_and_worse_before_milder() -> None:
    order = group(
        [
            episode(0, recovered_at=12000),
            episode(1, rule="DROPS", severity=Severity.WARN, facts={"rate": 0.1}),
            episode(2, rule="DEAD", facts={"experts": (1,), "share": 0.3}),
        ]
    )
    assert [finding.rule for finding in order] == ["DEAD", "DROPS", "COLLAPSE"]


def test_of_two_critical_findings_the_cause_stands_first() -> None:
    drops = episode(1, rule="DROPS", onset=11000, facts={"rate": 0.8})
    assert [finding.rule for finding in group([drops, episode(1)])] == ["COLLAPSE", "DROPS"]
