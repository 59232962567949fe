"""One trouble may be part of another: one chain gets one remedy and one step to go back to."""

from typing import Any

import pytest

from microscope_tui.diagnosis import WHOLE_RUN, Advice, Episode, Finding, Severity, advise, group
from microscope_tui.runlog import RouterInfo, RunRecord

RUN = RunRecord("r", (), balance={"method": "bias", "bias_update_rate": 0.001})
CHECKPOINTS = [800, 900, 1000, 1100]


def episode(rule: str, onset: int, index: int = 0, **changes: Any) -> Episode:
    router = RouterInfo(f"L{index + 1}", index + 1, 8, 2) if index != WHOLE_RUN else None
    known: dict[str, Any] = {"severity": Severity.CRITICAL, "value": 0.02, "limit": 0.15}
    known |= {"alarm": onset + 20, "last": 1500, "facts": {"experts": (1, 2)}}
    return Episode(rule=rule, router_index=index, router=router, onset=onset, **(known | changes))


def advice_of(episodes: list[Episode], run: RunRecord = RUN) -> dict[str, Advice]:
    return {f.rule: advise(f, run, CHECKPOINTS, episodes) for f in group(episodes)}


def exploding() -> list[Episode]:
    spike = episode("GRADSPIKE", 903, WHOLE_RUN)
    layers = [episode("LOGITS", 925, index) for index in (0, 3)]
    return [spike, *layers, episode("COLLAPSE", 1010), episode("COLLAPSE", 1020, 3)]


def test_a_divergence_has_one_remedy_and_one_step_to_go_back_to() -> None:
    said = advice_of(exploding())
    assert set(said) == {"GRADSPIKE", "LOGITS", "COLLAPSE"}
    (words,) = {advice.next for advice in said.values()}
    assert words == (
        "Lower the learning rate, clip the gradient norm, add a z-loss of 1e-3 and compute the "
        "router in fp32; go back to before step 903 (a checkpoint was written at 900)."
    )
    assert said["COLLAPSE"].why.endswith("The first sign was GRADSPIKE at step 903.")


def test_logits_alone_announce_a_divergence_of_their_layer_only() -> None:
    layers = [episode("LOGITS", 925, 0), episode("COLLAPSE", 990, 0), episode("COLLAPSE", 700, 5)]
    words = [advise(f, RUN, CHECKPOINTS, layers).next for f in group(layers)]
    assert sum("before step 925" in text and "z-loss" in text for text in words) == 2
    assert sum("before step 700" in text and "Raise bias_update_rate" in text for text in words)


@pytest.mark.parametrize(
    "spike",
    [
        {"onset": 900, "last": 905},  # over long before
        {"onset": 1000, "severity": Severity.WARN, "last": 1003},  # no alarm followed it
        {"onset": 1200, "last": 1500},  # a consequence, not the cause
        {"onset": 100, "last": 1500},  # as high for ever, and nothing came of it
    ],
)
def test_a_spike_that_led_to_nothing_does_not_explain_a_collapse(spike: Any) -> None:
    said = advice_of([episode("GRADSPIKE", index=WHOLE_RUN, **spike), episode("COLLAPSE", 1010)])
    assert "Raise bias_update_rate from 0.001 to 0.003" in said["COLLAPSE"].next
    assert "before step 1,010" in said["COLLAPSE"].next
    assert "go back" not in said["GRADSPIKE"].next


def test_experts_that_die_in_a_collapsed_layer_send_back_to_before_the_collapse() -> None:
    said = advice_of([episode("COLLAPSE", 910, last=1150), episode("DEAD", 1120)])
    assert "before step 910" in said["COLLAPSE"].next
    assert "before step 910" in said["DEAD"].next
    apart = [episode("COLLAPSE", 310, last=400, recovered_at=401), episode("DEAD", 1120)]
    assert "before step 1,120" in advice_of(apart)["DEAD"].next


def test_drops_beside_a_collapse_do_not_ask_for_capacity() -> None:
    drops = episode("DROPS", 1000, value=0.4, limit=0.2)
    said = advice_of([drops, episode("COLLAPSE", 910)])
    assert said["DROPS"].next.startswith("Fix the uneven load first (see COLLAPSE)")
    assert "capacity_factor" not in said["DROPS"].next
    elsewhere = advice_of([drops, episode("COLLAPSE", 910, 4)])
    assert "raise the capacity factor" in elsewhere["DROPS"].next.lower()


def test_re_initialising_and_going_back_are_alternatives() -> None:
    words = advise(Finding((episode("DEAD", 950),)), RUN, CHECKPOINTS).next
    assert words == (
        "Raise bias_update_rate from 0.001 to 0.003, then either re-initialise their router rows "
        "or go back to before step 950 (a checkpoint was written at 900)."
    )


@pytest.mark.parametrize(
    ("onset", "saved", "words"),
    [
        (1, [], "start again."),
        (1, [0, 100], "start again."),
        (40, [0, 100], "start again (no checkpoint is older than step 40)."),
        (40, [100], "go back to before step 40 (the log has no checkpoint that old)."),
        (40, [], "go back to before step 40."),
        (140, [0, 100, 200], "go back to before step 140 (a checkpoint was written at 100)."),
    ],
)
def test_going_back_names_what_there_is(onset: int, saved: list[int], words: str) -> None:
    assert advise(Finding((episode("COLLAPSE", onset),)), RUN, saved).next.endswith(words)


SHOCKED = {"shock_steps": 50.0, "effective": 2.0}


def collapses(*ends: int, **changes: Any) -> Finding:
    """Layers that collapse at step 910, and when each recovers."""
    return Finding(
        tuple(
            episode("COLLAPSE", 910, index, recovered_at=end, facts=SHOCKED, **changes)
            for index, end in enumerate(ends)
        )
    )


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (collapses(945), "in L1 from step 910 to 945, recovered after 35 steps: a shock"),
        (collapses(945, 950), "from step 910 to 950, recovered after 40 steps: a shock"),
        (collapses(945, 990), "in L1, L2 from step 910 to 990, recovered"),
    ],
)
def test_layers_are_a_shock_together_only_if_each_of_them_is(finding: Finding, words: str) -> None:
    assert advise(finding, RUN).verdict.endswith(words)


def test_layers_that_fall_one_after_the_other_are_a_shock_each() -> None:
    later = collapses(940).episodes[0]
    first = episode("COLLAPSE", 850, 3, recovered_at=885, facts=SHOCKED)
    words = advise(Finding((first, later)), RUN).verdict
    assert words.endswith("from step 850 to 940, each recovered within 35 steps: a shock")


def test_what_led_to_a_collapse_in_some_layers_only_says_in_which() -> None:
    facts = {"from": 0.9, "left": 30.0}
    known: dict[str, Any] = {"severity": Severity.WARN, "facts": facts, "recovered_at": 1000}
    slides = [
        episode("ERODING", 900, 0, led_to="COLLAPSE", **known),
        episode("ERODING", 900, 2, led_to="COLLAPSE", **known),
    ]
    assert advise(Finding(tuple(slides)), RUN).verdict.endswith("to 1,000, then router collapse")
    slides.insert(0, episode("ERODING", 900, 1, **known))
    advice = advise(Finding(tuple(slides)), RUN)
    assert advice.verdict.endswith("to 1,000, then router collapse in L1, L3, recovered elsewhere")
    assert advice.next == "See the alert it led to, router collapse."


def test_a_slide_that_reached_the_limit_does_not_announce_that_it_will() -> None:
    facts = {"from": 0.46, "left": 1.0}
    slide = episode(
        "ERODING", 900, severity=Severity.WARN, facts=facts, value=0.355, limit=0.35, last=1000
    )
    collapse = episode("COLLAPSE", 990, severity=Severity.WARN, value=0.32, limit=0.35)
    said = advice_of([slide, collapse])["ERODING"]
    assert said.why == "c fell from 0.46 to 0.35 and below, see COLLAPSE."
    assert "while it is cheap" not in said.next
    elsewhere = advice_of([slide, episode("COLLAPSE", 990, 4)])["ERODING"]
    assert "reaches 0.35 in about 1 step" in elsewhere.why


@pytest.mark.parametrize("rule", ["BIAS_RUNAWAY", "STARVED", "ERODING"])
def test_a_rate_that_makes_the_load_swing_is_not_raised(rule: str) -> None:
    known: dict[str, Any] = {"severity": Severity.WARN, "facts": {}}
    swing, sick = episode("OSCILLATION", 880, **known), episode(rule, 900, **known)
    words = advice_of([swing, sick])[rule].next
    assert words == "Stop the swing first (see OSCILLATION): stronger balancing would amplify it."
    elsewhere = advice_of([sick, episode("OSCILLATION", 880, 4, **known)])[rule].next
    over = advice_of([sick, episode("OSCILLATION", 700, recovered_at=800, **known)])[rule].next
    assert elsewhere.startswith("Raise bias_update_rate from 0.001")
    assert over == elsewhere


@pytest.mark.parametrize("active", [True, False])
def test_a_slide_is_cheap_to_stop_only_while_it_lasts(active: bool) -> None:
    facts = {"from": 0.9, "left": 30.0}
    slide = episode(
        "ERODING", 900, severity=Severity.WARN, facts=facts, recovered_at=None if active else 1000
    )
    advice = advise(Finding((slide,)), RUN)
    assert ("while it is cheap" in advice.next) is active
    assert ("would have reached" in advice.why) is not active


SOFTMAX = RunRecord(
    "r", (), balance={"method": "bias", "bias_update_rate": 0.001}, score_function="softmax"
)


@pytest.mark.parametrize("rule", ["COLLAPSE", "BIAS_RUNAWAY", "ERODING"])
@pytest.mark.parametrize(
    ("run", "facts", "words"),
    [
        (SOFTMAX, {"margin": 5.1}, "from 0.001 to 0.05 (the chosen scores lead by 5.1; at 0.001"),
        (RUN, {"margin": 5.1}, "from 0.001 to 0.05 (the chosen scores lead by 5.1; at 0.001"),
        (SOFTMAX, {"margin": 0.02}, "from 0.001 to 0.003"),
        (SOFTMAX, {}, "from 0.001 to 0.05 if the bias is added to logits, to 0.003 if to prob"),
        (SOFTMAX, {"max_logit": 40.0}, "from 0.001 to 0.2 if the bias is added to logits"),
        (RUN, {}, "from 0.001 to 0.003"),
    ],
)
def test_a_bias_rate_is_advised_by_the_scale_of_the_scores(
    rule: str, run: RunRecord, facts: Any, words: str
) -> None:
    found = Finding((episode(rule, 900, facts=facts),))
    assert f"raise bias_update_rate {words}" in advise(found, run).next.lower()


def test_an_auxiliary_loss_is_not_advised_about_updates_of_a_bias() -> None:
    run = RunRecord("r", (), balance={"method": "aux", "aux_weight": 0.02})
    words = advise(Finding((episode("OSCILLATION", 900),)), run).next
    assert "update" not in words
    assert "lower aux_weight from 0.02 to 0.01" in words
