"""The words: what, since when, why with numbers, and a remedy that fits this very run.

One trouble may be part of another: one chain gets one remedy and one step to go back to.
"""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from microscope_tui.diagnosis import Advice, causes, group
from microscope_tui.diagnosis.advice import advise
from microscope_tui.diagnosis.causes import Known
from microscope_tui.diagnosis.episodes import WHOLE_RUN, Episode, Finding, Reason, Severity
from microscope_tui.runlog import RouterInfo, RunRecord

BIAS: dict[str, Any] = {"method": "bias", "bias_update_rate": 0.001, "update": "sign"}
AUX = {"method": "aux", "aux_weight": 0.02}
RUN = RunRecord("r", (), balance=BIAS)
CHECKPOINTS = [800, 900, 1000, 1100]
FASTER = "Raise bias_update_rate from 0.001 to 0.003"
SAVED = "(a checkpoint was written at 900)"
CALM = (
    "Lower the learning rate, clip the gradient norm, add a z-loss of 1e-3 and compute the router "
    "in fp32"
)
SHOCKED = {"shock_steps": 50.0, "effective": 2.0}
SLIDING: dict[str, Any] = {"severity": Severity.WARN, "value": 0.4}
SLIDING["facts"] = {"from": 0.9, "left": 30.0}


def episode(rule: str, onset: int = 950, index: int = 0, **changes: Any) -> Episode:
    router = RouterInfo(f"L{index + 1}", index + 1, 8, 2) if index != WHOLE_RUN else None
    known: dict[str, Any] = {"severity": Severity.CRITICAL, "value": 0.02, "limit": 0.15}
    known |= {"alarm": onset + 20, "last": 1500, "facts": {"experts": (1, 2)}, "router": router}
    return Episode(rule=rule, router_index=index, onset=onset, **(known | changes))


def explained(
    *episodes: Episode, run: RunRecord = RUN, checkpoints: Sequence[int] = CHECKPOINTS, **known: Any
) -> list[tuple[Finding, Advice]]:
    """The findings of these episodes with their texts, cause by cause."""
    facts = Known(run=run, checkpoints=checkpoints, **known)
    return [(f, advise(f, c, facts)) for c in causes(episodes, facts) for f in c.findings]


def alone(*found: Episode, run: RunRecord = RUN, **known: Any) -> Advice:
    ((_, advice),) = explained(*found, run=run, **known)
    return advice


def advice_of(*episodes: Episode, **known: Any) -> dict[str, Advice]:
    return {finding.rule: advice for finding, advice in explained(*episodes, **known)}


CASES: list[tuple[str, float, float, dict[str, Any], str]] = [
    ("COLLAPSE", 0.02, 0.15, {"effective": 2.1, "usual": 7.9, "share": 0.97, "experts": (1, 5)},
     f"""
2.1 of 8 experts effective (7.9 before); experts 1, 5 take 97% of the load. {FASTER} and go back to
before step 950 {SAVED}."""),
    ("COLLAPSE", 0.02, 0.15, {"effective": 2.2, "idle": (0, 3)}, f"""
2.2 of 8 experts effective; 2 of 8 experts (0, 3) receive nothing. {FASTER} and go back to before
step 950 {SAVED}."""),
    ("SHOCK", 0.2, 0.7, {"usual": 0.95}, """
c fell from 0.95 to 0.20 and came back. Check whether the learning rate or the data changed at that
step."""),
    ("DEAD", 2.0, 0.0, {"experts": (3, 5), "steps": 120, "since": (950, 950)}, f"""
2 of 8 experts (3, 5) received no tokens for at least 120 steps. {FASTER}, then either re-initialise
their router rows or go back to before step 950 {SAVED}."""),
    ("HOT_EXPERT", 0.97, 0.8, {"c": 0.8, "experts": (5,)}, """
expert 5 is chosen by up to 97% of the tokens while the others share the rest: c 0.80. Leave it;
with expert parallelism watch the rank that holds it for stragglers."""),
    ("OVERLOAD", 1.7, 1.5, {"cause": "rank", "ranks": 4.0, "experts": (4, 5)}, """
rank 2 (experts 4 to 5) of 4 expert-parallel ranks has 1.7 times the work of the mean (limit 1.5).
Place busy and idle experts on the same rank; no single expert is the cause."""),
    ("OVERLOAD", 1.7, 1.5, {"cause": "rank", "ranks": 8.0, "experts": (2,)}, """
rank 2 (expert 2) of 8 expert-parallel ranks has 1.7 times the work of the mean (limit 1.5). Check
which data this expert attracts."""),
    ("OVERLOAD", 6.0, 3.5, {"usual": 1.5}, """
the busiest expert has 6.0 times its fair share (1.5 after the warm-up). Nothing, while neither a
capacity nor expert parallelism is configured: experts that specialise are uneven."""),
    ("MISMATCH", 0.2, 0.1, {"usual": 0.01}, """
up to 20.0% of the choices differ between trainer and engine (limit 10.0%, usually 1.0%). Enable
routing replay, so that the trainer uses the experts that the engine chose; else run the router of
both in fp32, and compare two probes with `moe-microscope mismatch` to see which layers differ."""),
    ("OSCILLATION", 0.5, 0.3, {"period": 2.0}, """
50% of the experts are overloaded and starved in turn, with a period of 2 steps. Lower
bias_update_rate from 0.001 to 0.0005, or average the load over more steps before each update."""),
    ("BIAS_RUNAWAY", 0.9, 0.2, {"slope": 0.002, "c": 0.4}, f"""
max − min of the bias grew to 0.9, 0.002 a step in a straight line, while c is 0.40.
{FASTER}; a bias on softmax logits needs far more than one on sigmoid scores."""),
    ("GRADSPIKE", 56.0, 10.0, {"norm": 70.0, "usual": 1.25}, """
a gradient norm of 70, 56 times its median before step 950. Clip the gradient norm, watch LOGITS,
and skip or replay the batch if it returns."""),
    ("GRADSPIKE", 9.0, 3.0, {"cause": "non-finite", "of": 10}, """
the gradient norm is NaN or infinite in 9 of 10 steps: they are skipped, or corrupt the weights. Go
back to a checkpoint with finite values, then lower the learning rate; in fp16 check whether the
loss scale keeps falling."""),
    ("LOGITS", 12.5, 10.0, {"z": 50.0, "usual": 4.0}, f"""
the z-loss is 12.5 times its median before step 950 (50 against 4). {CALM}; then go back to before
step 950 {SAVED}."""),
    ("UNIFORM", 0.99, 0.97, {"gradient": 1e-9}, """
token entropy is 99.0% of its maximum and its share of the gradient norm is 1e-09: it learns
nothing. Check that the router is not frozen and that the balancing is not too strong."""),
    ("METER", 1.0, 0.0, {"cause": "multiple", "total": 8192.0, "expected": 4096.0}, """
counts sum to 8,192, 2 times tokens × k (4,096). Count all top_k choices, of the first forward pass
only (activation checkpointing recomputes it), and make tokens cover the same ranks (world size) and
micro-batches."""),
    ("LINT", 0.0, 0.0, {"cause": "no balancing"}, """
the header names no load balancing: no bias update, no auxiliary loss. Switch on load balancing:
bias updates, or an auxiliary loss per layer."""),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_rule_gives_its_numbers_and_a_remedy(case: Any) -> None:
    rule, value, limit, facts, words = case
    advice = alone(episode(rule, value=value, limit=limit, facts=facts))
    assert f"{advice.why} {advice.next}" == " ".join(words.split())


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("non-finite", "the loss is NaN or infinite"),
        ("sum", "counts sum to 8,192, tokens × k is 4,096"),
        ("load", "max_load is 8192.00, but an expert that every token chooses has 4096.00 times"),
        ("width", "8192 counts in a row, the header has 4096 experts"),
        ("effective", "effective_experts is 8192.00, but tokens that choose 4096 experts use"),
        ("summary", "effective_experts is 8192.00, its counts give 4096.00"),
        ("forced", "all experts have the same count to ±1"),
    ],
)
def test_every_meter_fault_has_its_own_words(cause: str, words: str) -> None:
    numbers = {"total": 8192.0, "expected": 4096.0, "experts": (3,)}
    facts = {"cause": cause, "reading": "loss", **numbers}
    advice = alone(episode("METER", severity=Severity.ERROR, facts=facts))
    assert advice.verdict == "Meter fault in L1 since step 950"
    assert advice.why.startswith(words)


@pytest.mark.parametrize(
    ("rule", "changes", "run", "words"),
    [
        ("LOGITS", {"facts": {"cause": "range", "logit": 70.0, "most": 64.0}}, {},
         "a router logit of 70 in bf16 (limit 64). Lower the learning rate"),
        ("DROPS", {"value": 0.3}, {"capacity_factor": 1.25},
         "up to 30% of the assignments are dropped (limit 15%). Raise capacity_factor from 1.25 to "
         "1.875 or go dropless"),
        ("METER", {"facts": {"cause": "non-finite", "reading": "router entropy"}},
         {"profile": "eval"}, "Evaluate another checkpoint, or compute the router in fp32."),
        ("STARVED", {"value": 0.125, "facts": {"reference": 0.0}},
         {"profile": "eval", "planned_steps": 1},
         "1 of 8 experts (12%) gets less than a tenth of the fair share (0% in the reference). "
         "Count mixed data: on narrow data a long tail is normal."),
        ("UNIFORM", {"router": RouterInfo("L1", 1, 8, 1)}, {"norm_top_k": True},
         "Turn off the normalisation of the single weight: it is always 1."),
        ("ERODING", {"confidence": "per-step summaries only", **SLIDING}, {},
         "c fell from 0.90 to 0.40 and reaches 0.15 in about 30 steps. Based on per-step summaries "
         "only."),
    ],
)  # fmt: skip
def test_the_words_depend_on_the_run(rule: str, changes: Any, run: Any, words: str) -> None:
    advice = alone(episode(rule, **changes), run=RunRecord("r", (), **run) if run else RUN)
    assert words.lower() in f"{advice.why} {advice.next}".lower()


def test_a_verdict_names_the_trouble_its_layer_and_its_onset() -> None:
    facts = {"effective": 8.7, "experts": tuple(range(8)), "share": 0.97}
    advice = alone(episode("COLLAPSE", 11960, facts=facts, recurrence=1))
    assert advice.verdict == "Router collapse in L1 since step 11,960 (occurrence 2)"
    assert advice.short == "L1 router collapse since 11,960: 8.7 of 8 experts effective"
    assert "experts 0, 1, 2, 3, 4, 5 and 2 more take 97%" in advice.why
    setting = episode("LINT", 1, WHOLE_RUN, facts={"cause": "one rank"})
    assert alone(setting).verdict == "A setting to check: one rank since step 1"


def test_of_several_layers_the_numbers_name_their_layer() -> None:
    one, other = episode("COLLAPSE", facts={"effective": 2.0}), episode("COLLAPSE", index=2)
    worse = replace(other, severity=Severity.CRITICAL, onset=940)
    assert alone(worse, one).why.startswith("In L3: 0.0 of 8 experts")
    assert alone(one).why.startswith("2.0 of 8 experts")


def test_what_lasts_is_one_finding_and_what_is_over_only_if_it_began_together() -> None:
    layers = [episode("COLLAPSE", 950 + 90 * i, i) for i in range(5)]
    assert "in L1, L2 and 3 more layers since step 950" in alone(*layers).verdict
    over = [replace(layer, recovered_at=1600) for layer in layers]
    assert [f.layers for f in group(over)] == [("L1", "L2"), ("L3", "L4"), ("L5",)]


def test_information_on_what_is_over_keeps_its_remedy() -> None:
    over = episode("SHOCK", severity=Severity.INFO, recovered_at=1200)
    assert alone(over).next.startswith("Check whether the learning rate or the data changed")
    assert alone(replace(over, severity=Severity.WARN)).next.startswith("Nothing now; if it")


def test_a_recovered_episode_needs_nothing_unless_it_returned() -> None:
    advice = alone(episode("COLLAPSE", recovered_at=1600))
    assert advice.verdict.endswith("from step 950 to 1,600, recovered")
    assert advice.next.startswith("Nothing now; if it returns: ")
    again = alone(episode("COLLAPSE", recovered_at=1600, recurrence=1))
    assert again.next.startswith("It returned: ")


def test_findings_are_ordered_active_first_then_by_severity_then_causes_first() -> None:
    recovered = episode("COLLAPSE", recovered_at=1200)
    drops = [episode("DROPS", 900, 1, severity=Severity.WARN), episode("DROPS", 900, 2)]
    order = group([recovered, *drops, episode("DEAD", 950, 2)])
    assert [finding.rule for finding in order] == ["DEAD", "DROPS", "COLLAPSE"]
    assert {finding.severity for finding in order} == {Severity.CRITICAL}
    assert [len(finding.episodes) for finding in order] == [1, 2, 1]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([(910, 945)], "in L1 from step 910 to 945, recovered after 35 steps: a shock"),
        ([(910, 945), (910, 950)], "from step 910 to 950, recovered after 40 steps: a shock"),
        ([(910, 945), (910, 990)], "in L1, L2 from step 910 to 990, recovered"),
        ([(850, 885), (910, 940)], "to 940, each recovered within 35 steps: a shock"),
    ],
)
def test_layers_are_a_shock_together_only_if_each_of_them_is(layers: Any, words: str) -> None:
    episodes = [
        episode("COLLAPSE", onset, index, recovered_at=end, facts=SHOCKED)
        for index, (onset, end) in enumerate(layers)
    ]
    assert advice_of(*episodes)["COLLAPSE"].verdict.endswith(words)


@pytest.mark.parametrize(
    ("rule", "balance", "remedy"),
    [
        ("COLLAPSE", {"method": "bias"}, "raise bias_update_rate and"),
        ("COLLAPSE", BIAS | {"bias_update_rate": 0.0}, "set bias_update_rate above zero and"),
        ("COLLAPSE", AUX, "raise aux_weight from 0.02 to 0.06 and"),
        ("COLLAPSE", {"method": "none"}, "enable a balancing method and"),
        ("COLLAPSE", {}, "strengthen the load balancing and check that it acts on every layer"),
        ("OSCILLATION", {"method": "bias"}, "lower bias_update_rate, or average"),
        ("OSCILLATION", {"method": "none"}, "no enabled balancing could overshoot"),
        ("OSCILLATION", AUX, "check whether data or micro-batches alternate; if they do not, "
         "lower aux_weight from 0.02 to 0.01."),
        ("OSCILLATION", {"method": "quantile"}, "if these layers are balanced, weaken"),
        ("OSCILLATION", {}, "if these layers are balanced, weaken"),
        ("LOGITS", {"z_loss_weight": 1e-4}, "lower the learning rate, clip the gradient norm, "
         "raise z_loss_weight from 0.0001 to 0.001 and"),
    ],
)  # fmt: skip
def test_the_remedy_names_the_setting_of_the_run(rule: str, balance: Any, remedy: str) -> None:
    words = alone(episode(rule), run=RunRecord("r", (), balance=balance)).next
    assert words.lower().startswith(remedy)


@pytest.mark.parametrize(
    ("rule", "profile", "goes_back"),
    [
        ("COLLAPSE", "pretrain", True),
        ("COLLAPSE", "finetune", True),
        ("COLLAPSE", "eval", False),
        ("DEAD", "pretrain", True),
        ("DEAD", "finetune", False),  # it is advised to keep them
    ],
)
def test_only_a_training_is_sent_back(rule: str, profile: str, goes_back: bool) -> None:
    words = alone(episode(rule), run=RunRecord("r", (), profile=profile, balance=BIAS)).next
    assert ("go back" in words) == goes_back
    assert ("bias_update_rate" in words) == (goes_back and profile != "eval")
    assert "prune" not in words


@pytest.mark.parametrize(
    ("onset", "saved", "words"),
    [
        (1, [], "start again."),
        (1, [0, 100], "start again."),
        (40, [0, 100], "start again (no checkpoint before step 40)."),
        (40, [100], "start again (no checkpoint before step 40)."),
        (40, [], "go back to before step 40."),
        (100, [0, 99, 100], "go back to before step 100 (a checkpoint was written at 99)."),
    ],
)
def test_going_back_names_what_there_is(onset: int, saved: list[int], words: str) -> None:
    assert alone(episode("COLLAPSE", onset), checkpoints=saved).next.endswith(words)


@pytest.mark.parametrize(
    ("score_function", "facts", "words"),
    [
        ("softmax", {"margin": 5.1}, "0.001 to 0.05 (the chosen scores lead by 5.1; at 0.001 a "
         "bias needs 5,100 steps"),
        ("", {"margin": 5.1}, "0.001 to 0.05 (the chosen scores lead by 5.1; at 0.001"),
        ("softmax", {"margin": 0.02}, "0.001 to 0.003"),
        ("softmax", {}, "0.001 to 0.05 if the bias is added to logits, to 0.003 if to prob"),
        ("", {}, "0.001 to 0.003"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rule", ["COLLAPSE", "BIAS_RUNAWAY", "ERODING"])
def test_a_bias_rate_is_advised_by_the_scale_of_the_scores(
    rule: str, score_function: str, facts: dict[str, float], words: str
) -> None:
    run = RunRecord("r", (), balance=BIAS, score_function=score_function)
    advice = alone(episode(rule, 900, facts=facts), run=run).next
    assert advice.startswith(f"Raise bias_update_rate from {words}")


def test_a_forced_collapse_explains_what_its_layer_shows_from_then_on() -> None:
    forced = {"force_collapse": "2@900", "names": {"force_collapse": "--force-collapse"}}
    early = episode("STARVED", 100, 1, last=300, recovered_at=320)
    others = [episode("COLLAPSE", 950), episode("GRADSPIKE", 905, WHOLE_RUN), early]
    here = [episode("COLLAPSE", 890, 1), episode("DEAD", 940, 1), episode("SHOCK", 900, 1)]
    found = explained(*others, *here, run=RunRecord("r", (), balance=BIAS | forced))
    titles = {(finding.rule, finding.onset): advice.cause for finding, advice in found}
    title = "forced with --force-collapse 2@900"
    assert {key for key, cause in titles.items() if cause == title} == {
        ("COLLAPSE", 890), ("DEAD", 940), ("SHOCK", 900)
    }  # fmt: skip
    advice = next(advice for finding, advice in found if finding.onset == 890)
    assert advice.next == "Train a new run without --force-collapse."
    assert advice.cause_first(advice.short).startswith("Forced with --force-collapse 2@900: L2 ")


def test_a_lost_bias_explains_what_began_since_the_restart() -> None:
    lost = replace(setting(Reason.BIAS_LOST), onset=1000)
    found = explained(lost, episode("COLLAPSE", 949), episode("COLLAPSE", 950, 1))
    assert {(finding.layers, advice.cause) for finding, advice in found[:2]} == {
        (("L1",), "bias update too slow"),
        (("L2",), "selection bias lost at the restart"),
    }


def test_a_wrong_sign_is_flipped_before_anything_is_raised() -> None:
    setting = episode("LINT", 300, WHOLE_RUN, facts={"cause": Reason.WRONG_SIGN})
    advised = advice_of(setting, episode("COLLAPSE"), episode("BIAS_RUNAWAY"))
    assert "lip the sign of the bias update" in advised["BIAS_RUNAWAY"].next
    assert "aise bias_update_rate" not in advised["BIAS_RUNAWAY"].next
    words = advised["COLLAPSE"].next
    assert words.startswith("Flip the sign of the bias update: busy experts must lose bias and")
    assert words.endswith(f"then go back to before step 950 {SAVED}, with expert_bias set to zero.")


def test_a_divergence_has_one_remedy_and_one_step_to_go_back_to() -> None:
    layers = [episode("LOGITS", 925, 0), episode("LOGITS", 925, 3)]
    falls = [episode("COLLAPSE", 1010), episode("COLLAPSE", 1020, 3)]
    said = advice_of(episode("GRADSPIKE", 903, WHOLE_RUN), *layers, *falls)
    assert set(said) == {"GRADSPIKE", "LOGITS", "COLLAPSE"}
    (words,) = {advice.next for advice in said.values()}
    assert words == f"{CALM}; then go back to before step 903 (a checkpoint was written at 900)."
    assert said["COLLAPSE"].why.endswith("The first sign was GRADSPIKE at step 903.")


def test_logits_alone_announce_a_divergence_of_their_layer_only() -> None:
    layers = [episode("LOGITS", 925, 0), episode("COLLAPSE", 990, 0), episode("COLLAPSE", 700, 5)]
    words = [advice.next for _, advice in explained(*layers)]
    assert sum("before step 925" in text and "z-loss" in text for text in words) == 2
    assert sum("before step 700" in text and FASTER in text for text in words) == 1


@pytest.mark.parametrize(
    "spike",
    [
        {"onset": 900, "last": 905},  # over long before
        {"onset": 1000, "severity": Severity.WARN, "last": 1003},  # no alarm followed it
        {"onset": 1200, "last": 1500},  # a consequence, not the cause
        {"onset": 100, "last": 1500},  # as high for 500 steps without a consequence
    ],
)
def test_a_spike_that_led_to_nothing_does_not_explain_a_collapse(spike: Any) -> None:
    said = advice_of(episode("GRADSPIKE", index=WHOLE_RUN, **spike), episode("COLLAPSE", 1010))
    assert said["COLLAPSE"].next.startswith(f"{FASTER} and go back to before step 1,010")
    assert "go back" not in said["GRADSPIKE"].next


@pytest.mark.parametrize(
    ("onset", "explained"), [(959, False), (960, True), (1050, True), (1051, False)]
)
def test_a_collapse_near_a_spike_is_part_of_its_divergence(onset: int, explained: bool) -> None:
    spike = episode("GRADSPIKE", 1010, WHOLE_RUN, last=1000)
    said = advice_of(spike, episode("COLLAPSE", onset))
    assert ("first sign" in said["COLLAPSE"].why) == explained


def test_experts_that_die_in_a_collapsed_layer_send_back_to_before_the_collapse() -> None:
    said = advice_of(episode("COLLAPSE", 910, last=1150), episode("DEAD", 1120))
    assert "before step 910" in said["COLLAPSE"].next
    assert "before step 910" in said["DEAD"].next
    for ended, onset in ((1070, "910"), (1069, "1,120")):
        over = episode("COLLAPSE", 910, last=1000, recovered_at=ended)
        assert f"before step {onset}" in advice_of(over, episode("DEAD", 1120))["DEAD"].next


@pytest.mark.parametrize(("layer", "uneven"), [(0, True), (4, False)])
def test_drops_beside_a_collapse_do_not_ask_for_capacity(layer: int, uneven: bool) -> None:
    advised = advice_of(episode("DROPS", 1000), episode("COLLAPSE", 910, layer))["DROPS"]
    assert advised.next.startswith(FASTER) == uneven
    assert advised.next.startswith("Raise the capacity factor") != uneven
    assert advised.cause == ("bias update too slow" if uneven else "capacity too small")


@pytest.mark.parametrize(
    ("layer", "title"), [(0, "bias update too slow"), (4, "one expert overflows")]
)
def test_one_expert_overflows_only_where_its_layer_has_not_collapsed(
    layer: int, title: str
) -> None:
    drops = episode("DROPS", 1000, facts={"since": 900.0})
    assert advice_of(drops, episode("COLLAPSE", 910, layer))["DROPS"].cause == title


@pytest.mark.parametrize(
    ("facts", "title"),
    [
        ({"z": 12.0, "usual": 4.0}, ""),
        ({"cause": "range", "logit": 70.0}, "learning rate too high, the run diverges"),
    ],
)
def test_a_warning_of_the_z_loss_alone_can_wait_but_not_one_of_logits_beyond_bf16(
    facts: dict[str, Any], title: str
) -> None:
    sign = episode("LOGITS", severity=Severity.WARN, facts=facts)
    assert alone(sign).cause == title


def test_what_led_to_a_collapse_in_some_layers_only_names_them() -> None:
    slides = [
        episode("ERODING", 900, index, led_to="COLLAPSE", recovered_at=1000, **SLIDING)
        for index in (0, 2)
    ]
    assert alone(*slides).verdict.endswith("to 1,000, then router collapse")
    slides.insert(0, episode("ERODING", 900, 1, recovered_at=1000, **SLIDING))
    advice = alone(*slides)
    assert advice.verdict.endswith("to 1,000, then router collapse in L1, L3, recovered elsewhere")
    assert advice.next == "See the alert it led to, router collapse."
    assert "would have reached" in advice.why


def test_a_slide_that_reached_the_limit_does_not_announce_that_it_will() -> None:
    slide = episode(
        "ERODING", 900, value=0.36, limit=0.35,
        severity=Severity.WARN, facts={"from": 0.46, "left": 1.0},
    )  # fmt: skip
    fall: dict[str, Any] = {"severity": Severity.WARN, "value": 0.32, "limit": 0.35}
    said = advice_of(slide, episode("COLLAPSE", 990, **fall))["ERODING"]
    assert said.why == "c fell from 0.46 to 0.35 and below, see COLLAPSE."
    assert "while it is cheap" not in said.next
    elsewhere = advice_of(slide, episode("COLLAPSE", 990, 4, **fall))["ERODING"]
    assert "reaches 0.35 in about 1 step." in elsewhere.why
    lower = replace(slide, value=0.21, facts={"from": 0.29})
    said = advice_of(lower, episode("COLLAPSE", 990, **fall))["ERODING"]
    assert said.why == "c fell from 0.29 to 0.21, see COLLAPSE."
    slide.value = 0.31
    assert advice_of(slide)["ERODING"].why == "c fell from 0.46 to 0.31, below 0.35."


@pytest.mark.parametrize("rule", ["COLLAPSE", "BIAS_RUNAWAY", "STARVED", "ERODING"])
def test_a_rate_that_makes_the_load_swing_is_not_raised(rule: str) -> None:
    known: dict[str, Any] = {"severity": Severity.WARN, "facts": {}}
    sick = episode(rule, 900, **known)
    beside = advice_of(sick, episode("OSCILLATION", 880, **known))[rule]
    assert (beside.cause, beside.next[:10]) == ("bias_update_rate too high", "Lower bias")
    for elsewhere_or_over in (
        episode("OSCILLATION", 880, 4, **known),
        episode("OSCILLATION", 700, recovered_at=800, **known),
    ):
        words = advice_of(sick, elsewhere_or_over)[rule].next
        assert words.startswith(
            "A higher bias_update_rate would amplify a swing (the load of a router swings"
        )


@pytest.mark.parametrize(
    ("swing", "rate"), [(0.0, 0.003), (0.1, 0.003), (0.15, 0.002), (0.2, 0.0015), (0.21, None)]
)
def test_a_rate_is_raised_as_far_as_swings_leave_room(swing: float, rate: float | None) -> None:
    words = alone(episode("COLLAPSE"), swing=swing).next
    assert words.startswith(f"Raise bias_update_rate from 0.001 to {rate} " if rate else "A higher")


@pytest.mark.parametrize(
    ("rate", "margin", "raised"),
    [(1e-5, {}, "0.0001"), (2e-4, {}, "0.001"), (5e-4, {}, "0.0015"), (1e-5, 0.02, "0.0002 (")],
)
def test_a_rate_that_does_nothing_is_raised_tenfold_to_the_usual_one_or_as_the_margin_says(
    rate: float, margin: Any, raised: str
) -> None:
    stalled = {"stalled": 1.0} | ({"margin": margin} if margin else {})
    run = replace(RUN, balance=BIAS | {"bias_update_rate": rate})
    words = alone(episode("BIAS_RUNAWAY", facts=stalled), run=run).next
    assert words.startswith(f"Raise bias_update_rate from {rate:g} to {raised}")


def test_only_a_sign_update_is_made_faster() -> None:
    for update, words in (
        ("proportional", "A proportional update overshoots at a higher bias_update_rate: add"),
        (None, "If your update is the sign of the violation, raise bias_update_rate from 0.001"),
    ):
        run = replace(RUN, balance=BIAS | {"update": update})
        assert alone(episode("COLLAPSE"), run=run).next.startswith(words)


def setting(cause: str, severity: Severity = Severity.WARN) -> Episode:
    return episode("LINT", 1, WHOLE_RUN, severity=severity, facts={"cause": cause})


@pytest.mark.parametrize(
    ("cause", "balance", "title", "remedy"),
    [
        ("aux not applied", AUX, "auxiliary loss not applied", "Set output_router_logits to true"),
        ("no balancing", {"method": "none"}, "no load balancing", "Switch on"),
        ("aux pooled", AUX, "auxiliary loss pooled over all layers", "Compute the auxiliary loss"),
        ("top-1 normalised", {}, "top-1 routing with normalised weights", "Set norm_top_k"),
        ("router frozen", AUX, "frozen router", "No setting balances a frozen router"),
        (Reason.WRONG_SIGN, BIAS, "bias update with the wrong sign", "Flip the sign"),
    ],
)
def test_a_setting_that_cannot_work_is_the_cause_of_an_uneven_load(
    cause: str, balance: dict[str, Any], title: str, remedy: str
) -> None:
    sick = [*(episode("COLLAPSE", 300 + 90 * i, i) for i in range(4)), episode("DEAD", 1120, 1)]
    found = explained(*sick, setting(cause), run=replace(RUN, balance=balance))
    assert [finding.rule for finding, _ in found] == ["COLLAPSE", "DEAD", "LINT"]
    assert {advice.cause for _, advice in found} == {title}
    assert found[0][1].explains == ("COLLAPSE in L1 to L4", "DEAD in L2")
    assert not found[1][1].explains
    assert all(advice.next.startswith(remedy) for _, advice in found)


def test_pooling_is_the_cause_only_where_other_layers_are_even() -> None:
    routers = tuple(RouterInfo(f"L{i + 1}", i + 1, 8, 2) for i in range(2))
    run = RunRecord("r", routers, balance=AUX)
    pooled = setting("layers pooled", severity=Severity.INFO)
    one, both = [episode("COLLAPSE")], [episode("COLLAPSE"), episode("COLLAPSE", index=1)]
    causes = [advice_of(*sick, pooled, run=run)["COLLAPSE"].cause for sick in (one, both)]
    assert causes == ["auxiliary loss pooled over all layers", "auxiliary loss too weak"]


@pytest.mark.parametrize(
    ("experts", "resumes", "stopped"),
    [
        (range(8, 12), [501], "since the restart at 501"),
        (range(8, 12), [], "since step 510"),
        (range(8, 16), [501], "experts 8 to 15 of 32 on 8 ranks are rank 2 and 3: its counts"),
        (range(8, 11), [501], ""),
        (range(9, 13), [501], ""),
        (range(0, 32), [501], ""),
    ],
)
def test_dead_experts_that_are_exactly_one_rank_are_not_re_initialised(
    experts: range, resumes: list[int], stopped: str
) -> None:
    router = RouterInfo("L1", 1, 32, 4)
    run = replace(RUN, routers=(router,), expert_parallel_size=8)
    dead = episode("DEAD", 510, router=router, facts={"experts": tuple(experts)})
    advice = alone(dead, run=run, resumes=resumes)
    assert stopped in advice.cause
    assert ("re-initialise these experts" in advice.next) == bool(stopped)
    if not stopped:
        assert advice.cause.startswith("restart at step 501") == bool(resumes)


@pytest.mark.parametrize(("onset", "cause"), [(500, False), (501, True), (551, True), (552, False)])
def test_a_restart_explains_what_begins_within_fifty_steps(onset: int, cause: bool) -> None:
    advice = alone(episode("COLLAPSE", onset), resumes=[501])
    assert advice.cause == ("restart at step 501" if cause else "bias update too slow")
    assert ("compare what was loaded" in advice.next.lower()) == cause


def test_a_change_of_the_data_explains_what_begins_in_several_layers_at_once() -> None:
    changes = [(940, "the loss jumps from 2.1 to 2.6")]
    routers = tuple(RouterInfo(f"L{i + 1}", i + 1, 8, 2) for i in range(3))
    run = replace(RUN, routers=routers)
    both = [episode("STARVED", 950, severity=Severity.WARN), episode("ERODING", 960, 1)]
    causes = [
        {a.cause for a in advice_of(*sick, run=run, changes=changes).values()}
        for sick in (both, both[:1])
    ]
    changed = "change at step 940: the loss jumps from 2.1 to 2.6"
    assert causes == [{changed}, {"bias update too slow"}]
