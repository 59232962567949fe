"""LINT: settings that are known to damage a run, from its header and from its steps."""

import random
from typing import Any

import pytest

from microscope_tui.diagnosis import Severity, report
from microscope_tui.scenarios import draw_counts
from tests.conftest import header, step
from tests.diagnosis.conftest import COLLAPSED, Record, collapse_at, even, judge, of, steps

POOLS = {"method": "aux", "aux_weight": 0.02, "output_router_logits": True}
UNAPPLIED = POOLS | {"output_router_logits": False}
GPT_OSS = {"name": "openai/gpt_oss-20b"}
ON_ATTENTION = {"experts": [0, 48], "adapters": {"experts": 0, "attention": 8}}
NAMES = {"trainer_aux_weight": "SFTConfig.aux_coef", "aux_weight": "router_aux_loss_coef"}
UNUSED = {"trainer_aux_weight": 0.01, "names": NAMES}
MOVES = "bias moves, router frozen"
WARN, INFO = Severity.WARN, Severity.INFO


def causes(records: list[Record]) -> list[Any]:
    episodes = judge(records).episodes
    return [(e.facts["cause"], e.severity, e.onset) for e in episodes if e.rule == "LINT"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"model": {"top_k": 1, "norm_top_k": True}}, [("top-1 normalised", WARN)]),
        ({"model": {"top_k": 1, "norm_top_k": False}}, []),
        ({"model": {"norm_top_k": True}}, []),
        ({"balance": {"method": "none"}}, [("no balancing", WARN)]),
        ({"balance": {"method": "aux", "aux_weight": 0.0}}, [("no balancing", WARN)]),
        ({"balance": {"method": "aux", "aux_weight": 0.01}}, []),
        ({"balance": UNAPPLIED}, [("aux not applied", WARN)]),
        (
            {"balance": UNAPPLIED, "training": {"routers": [0, 3]}},
            [("aux not applied", INFO), ("router frozen", INFO)],
        ),
        ({"balance": {"method": "aux", "pools_layers": True}}, [("layers pooled", INFO)]),
        ({"balance": {"method": "bias", "updates_bias": False}}, [("bias not updated", INFO)]),
        ({"balance": {"method": "bias", "frozen_routers": True}}, [("router frozen", INFO)]),
        ({"balance": {"method": "none", "frozen_routers": 3}}, [("router frozen", INFO)]),
        (
            {"balance": {"method": "none", "frozen_routers": 2}},
            [("no balancing", WARN), ("router frozen", INFO)],
        ),
        *(
            ({"balance": {"method": method}}, [("balanced by construction", INFO)])
            for method in ("sinkhorn", "expert_choice", "base")
        ),
        ({"balance": {"aux_weight": 0.5}, "model": GPT_OSS}, [("aux too strong", WARN)]),
        ({"balance": {"aux_weight": 0.49}, "model": GPT_OSS}, []),
        ({"balance": {"aux_weight": 0.9}}, []),
        ({"training": {"missing_targets": ["w1"]}}, [("missing targets", WARN)]),
        ({"training": {"routers": [3, 3], "experts": [0, 48], "missing_targets": []}}, []),
        ({"training": {"routers": [0, 3]}}, [("router frozen", INFO)]),
        ({"training": ON_ATTENTION}, [("adapters miss experts", INFO)]),
        ({"training": ON_ATTENTION | {"experts": [48, 48]}}, []),  # trained without an adapter
        ({"training": ON_ATTENTION | {"adapters": {"experts": 4, "attention": 8}}}, []),
        ({"training": ON_ATTENTION | {"adapters": {"attention": 8}}}, []),  # unknown
        ({"training": ON_ATTENTION | {"adapters": {"experts": 0}}}, []),  # there is none
        ({"balance": {"method": "bias", **UNUSED}}, [("trainer aux ignored", WARN)]),
        ({"balance": UNAPPLIED | UNUSED}, [("trainer aux ignored", WARN)]),
        ({"balance": {"method": "bias", **UNUSED, "trainer_aux_weight": 0}}, []),
        ({"profile": "eval", "training": ON_ATTENTION | {"missing_targets": ["w1"]}}, []),
        ({"source": {"counts": "local_rank"}}, [("one rank", INFO)]),
        ({"profile": "eval", "balance": {"method": "none"}}, []),
        ({"profile": "eval", "balance": UNAPPLIED}, []),
        ({"profile": "eval", "source": {"counts": "local_rank"}}, [("one rank", INFO)]),
    ],
)
def test_a_setting_is_reported_at_the_first_step(changes: dict[str, Any], found: Any) -> None:
    records = [header(**changes), *steps(1, 3)]
    assert causes(records) == [(*cause, 1) for cause in found]


def test_a_setting_has_no_present_number() -> None:
    assert of(judge([header(balance={"method": "none"}), *steps(1, 3)]), "LINT").now is None


@pytest.mark.parametrize(("tokens", "found"), [(4, []), (3, ["few tokens"])])
def test_an_expert_that_expects_less_than_one_token_is_noted(tokens: int, found: list[str]) -> None:
    records = steps(1, 3)
    for record in records:
        record["tokens"] = tokens
        del record["tokens_per_expert"]
    assert [cause for cause, *_ in causes([header(), *records])] == found


@pytest.mark.parametrize(
    ("aux", "length", "balance", "found"),
    [
        (2.09, 25, POOLS, [("aux pooled", WARN, 224)]),
        (1.91, 25, POOLS, [("aux pooled", WARN, 224)]),
        (2.11, 25, POOLS, []),  # not at its floor
        (2.0, 24, POOLS, []),  # it passes through
        (2.0, 99, {"method": "aux", "aux_weight": 0.02}, []),  # a writer that does not pool
    ],
)
def test_an_auxiliary_loss_at_k_is_pooled_where_it_stays_there_and_the_writer_pools(
    aux: float, length: int, balance: dict[str, Any], found: list[Any]
) -> None:
    losses = lambda n: {"aux": aux if 200 <= n < 200 + length else 3.0}  # noqa: E731
    for sick, expected in ((lambda n: COLLAPSED, found), (even, [])):
        records = [header(balance=balance), *steps(1, 320, sick, losses=losses)]
        assert causes(records) == expected


@pytest.mark.parametrize(
    ("balance", "ended"), [(POOLS, None), ({"method": "bias", "bias_update_rate": 0.001}, 310)]
)
def test_what_was_pooled_long_enough_is_reported_until_another_header(
    balance: dict[str, Any], ended: int | None
) -> None:
    losses = lambda n: {"aux": 2.0 if 200 <= n < 225 else 3.0}  # noqa: E731
    before = steps(1, 309, lambda n: COLLAPSED, losses=losses)
    resumed = header(balance=balance, resumed_at_step=310)
    after = steps(310, 320, lambda n: COLLAPSED, losses=losses)
    episodes = judge([header(balance=POOLS), *before, resumed, *after]).episodes
    (pooled,) = [e for e in episodes if e.reason == "aux pooled"]
    assert (pooled.onset, pooled.recovered_at) == (224, ended)


def test_layers_are_pooled_only_from_the_header_that_pools_them_on() -> None:
    losses = lambda n: {"aux": 2.0}  # noqa: E731
    before = steps(1, 309, lambda n: COLLAPSED, losses=losses)
    own = header(balance={"method": "bias", "output_router_logits": True})
    for last, found in ((333, []), (334, [("aux pooled", WARN, 334)])):
        after = steps(310, last, lambda n: COLLAPSED, losses=losses)
        records = [own, *before, header(balance=POOLS, resumed_at_step=310), *after]
        assert causes(records) == found


@pytest.mark.parametrize(("third", "found"), [([0, 2, 3, 3], ["aux pooled"]), ([3, 3, 2, 0], [])])
def test_layers_that_cancel_out_show_a_pooled_loss_unlogged(third: Any, found: list[str]) -> None:
    ends = [0.1] * 4
    shares = [[3, 3, 2, *ends, 0.1], [0.1, 0.1, 1, 3, 3, 1, 0.1, 0.1], [*ends, *third]]
    records = []
    for n in range(1, 200):
        rows = [draw_counts(row, 2048, 2, random.Random(3 * n + i)) for i, row in enumerate(shares)]
        records.append(step(n, rows, 2048))
    run = header(balance={"method": "aux", "aux_weight": 0.02})
    assert [cause for cause, *_ in causes([run, *records])] == found


@pytest.mark.parametrize(("experts", "found"), [(8, ["aux pooled"]), (7, [])])
def test_fewer_than_eight_experts_cancel_out_by_chance(experts: int, found: list[str]) -> None:
    records = []
    for n in range(1, 200):
        weights = [
            [0.1] * layer + [20.0] + [0.1] * (experts - 1 - layer) for layer in range(experts)
        ]
        rows = [draw_counts(w, 2048, 1, random.Random(99 * n + i)) for i, w in enumerate(weights)]
        records.append(step(n, rows, 2048))
    names = [f"L{i}" for i in range(experts)]
    model = {"num_experts": experts, "top_k": 1}
    model |= {"layer_names": names, "layers": list(range(experts))}
    run = header(balance={"method": "aux", "aux_weight": 0.02}, model=model)
    assert [cause for cause, *_ in causes([run, *records])] == found


@pytest.mark.parametrize(("name", "top_k"), [("z", 2), ("aux", [2, 2, 1])])
def test_another_loss_and_routers_with_another_k_have_no_floor(name: str, top_k: Any) -> None:
    run = header(balance=POOLS, model={"top_k": top_k})
    losses = lambda n: {name: 2.0}  # noqa: E731
    assert causes([run, *steps(1, 150, lambda n: COLLAPSED, losses=losses)]) == []


def test_a_setting_is_reported_although_the_first_steps_are_not_measured() -> None:
    lost = lambda n: {"entropy": ["NaN" if n < 5 else 1.9] * 3}  # noqa: E731
    records = [header(balance={"method": "none"}), *steps(1, 60, router=lost)]
    assert {e.rule for e in judge(records).episodes} == {"METER", "LINT"}


@pytest.mark.parametrize(
    ("profile", "moves_at", "found"),
    [
        ("finetune", 99, [("router frozen", INFO, 5)]),
        ("finetune", 3, [("no balancing", WARN, 3)]),  # at first its gradient was zero
        ("finetune", 50, [("router frozen", INFO, 5), ("no balancing", WARN, 50)]),
        ("pretrain", 99, [("no balancing", WARN, 1)]),  # there a gradient of zero is a fault
    ],
)
def test_where_no_router_has_a_gradient_nothing_is_to_be_balanced(
    profile: str, moves_at: int, found: list[Any]
) -> None:
    gradients = lambda n: {"grad_norm": [0.0, 0.0, 0.1 if n >= moves_at else 0.0]}  # noqa: E731
    run = header(profile=profile, balance={"method": "none"})
    records = [run, *steps(1, 60, router=gradients)]
    assert causes(records) == found
    resumed = [*records, run | {"resumed_at_step": 55}, *steps(55, 90, router=gradients)]
    assert causes(resumed) == found, "a resume changes nothing"
    trained = [run | {"training": {"routers": [3, 3]}}, *records[1:]]  # the header says: not frozen
    assert causes(trained) == [("no balancing", WARN, 1)]


def with_bias(records: list[Record], span: Any, every: int = 1) -> list[Record]:
    """Every layer has a bias that spans ``span(step)``, in every so many lines."""
    for record in records:
        if record["kind"] == "step" and record["step"] % every == 0:
            record["expert_bias"] = [[span(record["step"]) * e / 7 for e in range(8)]] * 3
    return records


@pytest.mark.parametrize(
    ("restart", "left", "every", "found"),
    [
        (201, 0.0, 1, [("bias lost", WARN, 201)]),
        (201, 0.05, 4, [("bias lost", WARN, 201)]),
        (201, 0.5, 1, []),  # it was smaller then: another rate
        (2, 0.0, 1, []),  # from the beginning: it starts at zero
        (None, 0.0, 1, []),
    ],
)
def test_a_bias_that_a_restart_set_to_zero_was_not_in_the_checkpoint(
    restart: int | None, left: float, every: int, found: list[Any]
) -> None:
    again = [header(resumed_at_step=restart)] if restart else []
    before = with_bias(steps(1, 220), lambda n: 0.1 * n / 220, every)
    after = with_bias(steps(restart or 221, 320), lambda n: left * 0.1, every)
    diagnosis = judge([header(), *before, *again, *after])
    assert causes([header(), *before, *again, *after]) == found
    for _, advice in report(diagnosis) if found else ():
        assert "0 since the restart at step 201, before it spanned 0.0" in advice.why
        assert "a buffer" in advice.next
        assert "go back to before step 201" in advice.next


def test_a_bias_lost_at_every_resume_is_to_be_saved_until_a_resume_keeps_it() -> None:
    records = [header(), *with_bias(steps(1, 200), lambda n: n / 2000)]
    for at in (201, 401, 601):
        again = with_bias(steps(at, at + 199), lambda n, at=at: (n - at) / 2000)
        records += [header(resumed_at_step=at), *again]
    ((_, advice), (second, _)) = report(judge(records))
    assert advice.why.endswith("at step 401 lost the selection bias again, as the one at 201 did.")
    assert advice.next.startswith("Save the bias with the model, and load it")
    assert not second.active
    kept = [header(resumed_at_step=801), *with_bias(steps(801, 830), lambda n: 0.1)]
    assert not any(finding.active for finding, _ in report(judge(records + kept)))


def test_an_auxiliary_loss_that_no_router_can_follow_is_no_fault_and_no_cause() -> None:
    still = lambda n: {"grad_norm": [0.0] * 3}  # noqa: E731
    run = header(profile="finetune", balance=UNAPPLIED)
    said = {
        finding.worst.facts.get("cause", finding.rule): (finding.severity, advice)
        for finding, advice in report(judge([run, *steps(1, 240, collapse_at(150), router=still)]))
    }
    severity, advice = said["aux not applied"]
    assert severity is INFO
    assert "no router trains: it could act only through the adapters before" in advice.why
    assert advice.next.startswith("Nothing, if this is intended; otherwise set output_router")
    assert said["COLLAPSE"][1].cause == "frozen router"


def test_a_bias_that_a_second_resume_at_the_same_step_loses_is_lost_there_again() -> None:
    records = [header(), *with_bias(steps(1, 200), lambda n: 0.1)]
    for last in (230, 260):
        records += [header(resumed_at_step=201), *with_bias(steps(201, last), lambda n: 0.0)]
    found = of(judge(records), "LINT")
    assert (found.onset, found.facts["at"]) == (201, 201)
    assert found.facts["before"] == pytest.approx(0.1)


def test_a_lost_bias_that_has_grown_again_is_over() -> None:
    resumed = [header(resumed_at_step=201), *steps(201, 500)]
    records = [header(), *with_bias(steps(1, 200), lambda n: 0.1)]
    diagnosis = judge(records + with_bias(resumed, lambda n: 0.1 * (n - 201) / 200))
    found = of(diagnosis, "LINT")
    assert (found.onset, found.facts["cause"]) == (201, "bias lost")
    assert 301 <= (found.recovered_at or 0) <= 401


@pytest.mark.parametrize(
    ("frozen", "span", "every", "at"),
    [
        ({"balance": {"method": "bias", "frozen_routers": 3}}, lambda n: n, 1, 2),
        ({"training": {"routers": [0, 3]}}, lambda n: n, 10, 20),
        ({"training": {"routers": [0, 3]}}, lambda n: n // 130, 1, 200),  # a later look
        ({"training": {"routers": [0, 3]}}, lambda n: 7, 1, None),
        ({"balance": {"method": "bias", "frozen_routers": 2}}, lambda n: n, 1, None),
        ({"training": {"routers": [0, 3]}, "profile": "eval"}, lambda n: n, 1, None),
    ],
)
def test_a_bias_moving_while_frozen_is_found(frozen: Any, span: Any, every: int, at: Any) -> None:
    records = [header(**frozen), *with_bias(steps(1, 210), lambda n: 0.001 * span(n), every)]
    assert [c for c in causes(records) if c[0] == MOVES] == [(MOVES, WARN, at)] * bool(at)


@pytest.mark.parametrize(("then", "ended"), [(lambda n: n, None), (lambda n: 50, 90)])
def test_a_bias_that_is_still_after_a_restart_no_longer_moves(then: Any, ended: Any) -> None:
    run = header(training={"routers": [0, 3]}, balance={"method": "none"})
    resumed = [run | {"resumed_at_step": 51}, *with_bias(steps(51, 130), then)]
    episodes = judge([run, *with_bias(steps(1, 50), lambda n: n), *resumed]).episodes
    found = [e for e in episodes if e.facts["cause"] == MOVES]
    assert [(e.onset, e.recovered_at) for e in found] == [(2, ended)]


def test_the_text_names_the_modules_and_both_settings_without_control_characters() -> None:
    names = ["gate\x1b[2J", *"abcdefg"]
    run = header(training={"missing_targets": names}, balance={"method": "aux", **UNUSED})
    said = {f.worst.facts["cause"]: a for f, a in report(judge([run, *steps(1, 3)]))}
    assert "\N{REPLACEMENT CHARACTER}[2J, a, b, c, d, e and 2 more" in said["missing targets"].why
    assert "SFTConfig.aux_coef is 0.01" in said["trainer aux ignored"].why
    assert "Set router_aux_loss_coef" in said["trainer aux ignored"].next


def test_a_model_without_an_auxiliary_loss_has_no_setting_to_advise() -> None:
    run = header(balance={"method": "bias", "trainer_aux_weight": 0.01})
    ((_, advice),) = report(judge([run, *steps(1, 3)]))
    assert "the model has no auxiliary loss" in advice.why
    assert advice.next.startswith("Set it to 0")
