"""Named numbers end up in the right row of the right step."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from microscope_tui import sources
from microscope_tui.sources import step_rows
from microscope_tui.sources.keys import Target, config_number
from microscope_tui.sources.reader import Row, RowReader, Rows, Unreadable
from microscope_tui.sources.records import SHARES_SUM, counts_of_shares
from microscope_tui.sources.row_records import RowRecords
from tests.sources.reading import counts_of

Logged = tuple[int, Mapping[str, float]]
COUNTS = {f"router/tokens_per_expert/0/{expert}": 2.0 for expert in range(4)}


class Logger(RowReader):
    """A source that is fed in the test; each read returns one row."""

    def __init__(
        self, rows: Sequence[Logged], config: Mapping[str, object] = {}, maps: Sequence[str] = ()
    ) -> None:
        super().__init__(Path(), sources.Keys(sources.rules_of(maps)))
        self.config, self.rows, self._read = config, list(rows), 0
        self.modified = 0.0  # at rest

    def again(self, keys: sources.Keys) -> "Logger":
        logger = Logger((), self.config)
        logger.rows = self.rows
        logger.keys = keys
        return logger

    def read(self, max_bytes: int = 0) -> Rows:
        self.exhausted = len(self.rows) - self._read <= 1
        if self._read == len(self.rows):
            return Rows()
        step, values = self.rows[self._read]
        self._read += 1
        known = [(target, value) for key, value in values.items() if (target := self.keys[key])]
        return Rows([Row(step, float(step), known)])


def records(logger: Logger, **asked: Any) -> list[dict[str, Any]]:
    reader, found = RowRecords(logger, "run", "test", sources.SourceRequest(**asked)), []
    while True:
        batch = reader.read()
        found += batch.records
        if reader.exhausted and not batch.records:
            return found


def shares(layer: int, row: Sequence[float]) -> dict[str, float]:
    return {f"moe_ep_usage/L-{layer}_EP-{expert}": share for expert, share in enumerate(row)}


def of_kind(found: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record for record in found if record["kind"] == kind]


def test_steps_before_the_first_router_reading_are_kept() -> None:
    found = records(Logger([(1, {"loss": 3.0}), (2, shares(0, [0.5, 0.5])), (3, {"loss": 2.0})]))
    assert [record["kind"] for record in found] == ["run", "step", "step", "step"]
    assert [record["step"] for record in of_kind(found, "step")] == [1, 2, 3]


def test_layers_are_in_the_order_of_their_numbers_not_of_their_names() -> None:
    layers = shares(10, [0.9, 0.1]) | shares(2, [0.5, 0.5])
    run, step = records(Logger([(1, layers)]))
    assert (run["model"]["layers"], run["model"]["top_k"]) == ([2, 10], None)  # k is unknown
    assert step["tokens_per_expert"] == [[500_000, 500_000], [900_000, 100_000]]


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"n_routed_experts": 4, "moe_topk": 2}},
        {"model": {"value": {"num_experts": 4, "num_experts_per_tok": 2}}},
        {"moe.num-experts": {"value": 4, "desc": None}, "args/top_k": 2},
    ],
)
def test_experts_and_choices_come_from_the_user_else_the_config(config: dict[str, object]) -> None:
    logged: list[Logged] = [(1, {"moe_maxvio_batch/L-1": 0.5})]
    for request, expected in (({}, (4, 2)), ({"num_experts": 8, "top_k": 1}, (8, 1))):
        model = records(Logger(logged, config), **request)[0]["model"]
        assert (model["num_experts"], model["top_k"]) == expected


def test_the_k_of_the_screen_is_used_where_the_source_has_none() -> None:
    for config, tokens, k in (({}, 5.0, 3), ({}, 4.0, 2), ({"top_k": 1}, 5.0, 1)):
        logger = Logger([(1, COUNTS | {"tokens_per_step": tokens})], config)
        assert records(logger, confirmed_top_k=3)[0]["model"]["top_k"] == k


@pytest.mark.parametrize(
    ("rows", "tokens"),
    [
        ([[4, 4, 0, 0], [2, 2, 2, 2]], 4),
        ([[5, 3, 0, 0]], None),  # a token chose an expert twice
        ([[4, 4, 0, 0], [2, 2, 2, 0]], None),  # not all choices were counted
        ([[3, 2, 2, 2]], None),
    ],
)
def test_tokens_follow_from_counts_and_k(rows: list[list[int]], tokens: int | None) -> None:
    cells = {
        f"tokens_per_expert/{n}/{e}": x for n, row in enumerate(rows) for e, x in enumerate(row)
    }
    for asked in ("top_k", "confirmed_top_k"):
        assert records(Logger([(1, cells)]), **{asked: 2})[-1].get("tokens") == tokens


@pytest.mark.parametrize(
    ("logged", "layers", "max_load"),
    [
        ({"moe/max_vio/layer_0": 0.5, "moe/max_vio/layer_1": 2.0}, ["L0", "L1"], [1.5, 3.0]),
        ({"router/max_load/0": 1.75, "moe/max_vio/layer_0": 0.5}, ["L0"], [1.5]),
        ({"moe/max_vio/layer_0": 0.5, "router/max_load/0": 1.75}, ["L0"], [1.75]),
        ({"max_vio/max": 1.0, "max_vio/mean": 0.5}, ["all layers"], [2.0]),
        ({"moe/max_vio/layer_0": 0.5, "moe/max_vio/max": 0.7}, ["L0"], [1.5]),
    ],
    ids=["load less one", "the later", "the later load", "one for all", "none beside layers"],
)
def test_max_violation_becomes_the_load_of_its_router(
    logged: dict[str, float], layers: list[str], max_load: list[float]
) -> None:
    run, step = records(Logger([(1, logged)]))
    assert run["model"]["layer_names"] == layers
    assert run["source"]["counts"] == "none"
    assert step["router"] == {"max_load": max_load}


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("moe_ep_usage/L-3_EP-7", ("share", 3, 7)),  # EP is an expert here, not a rank
        ("moe_maxvio_batch/L-3", ("max_vio", 3, None)),
        ("moe-expert/sinkhorn_tokens_per_expert_layer3_expert7", ("tokens_per_expert", 3, 7)),
        ("moe_expert_utilization/layer_3_expert_7", ("share", 3, 7)),
        ("rollout/moe/max_vio/max", ("max_vio", None, None, "rollout")),
        ("max_vio/max", ("max_vio", None, None)),
        ("max_vio", None),  # older prime-rl: without the k busiest experts, another quantity
        ("expert_load/max_mean/max", ("max_load", None, None)),
        ("train/block 03/load imbalance", ("max_load", 3, None)),
        ("block_03/router_Z_loss_unscaled", ("z_loss", 3, None)),
        ("load imbalance", ("max_load", None, None)),
        ("moe/z_loss_layer_3", ("z_loss", 3, None)),
        ("router/entropy/3", ("entropy", 3, None)),
        ("router/tokens_per_expert/3/7", ("tokens_per_expert", 3, 7)),
        ("train/CE loss", ("loss", None, None)),
        ("optim/lr", ("learning_rate", None, None)),
        ("total grad norm", ("grad_norm", None, None)),
        ("throughput(tps)", ("tokens_per_s", None, None)),
        ("num_tokens_per_step", ("tokens", None, None)),
        ("moe_entropy/L-4095", ("entropy", 4095, None)),
        ("moe_entropy/L-4096", None),
        ("moe_bias/L-3_EP-65535", ("expert_bias", 3, 65535)),
        ("moe_bias/L-3_EP-65536", None),
        ("x" * 505 + "/loss", ("loss", None, None)),
        ("x" * 508 + "/loss", None),
    ],
)
def test_the_keys_of_known_writers_have_a_target(key: str, target: tuple[Any, ...] | None) -> None:
    assert sources.Keys()[key] == (target and Target(*target))


def test_a_row_with_a_missing_expert_is_no_row() -> None:
    logged = shares(1, [0.5, 0.5]) | {"moe_ep_usage/L-2_EP-1": 0.7, "moe_ep_usage/L-2_EP-0": 0.3}
    partial = {key: value for key, value in logged.items() if not key.endswith("L-2_EP-0")}
    *_, last = records(Logger([(1, logged), (2, partial)]))
    assert last["tokens_per_expert"] == [[500_000, 500_000], None]


def test_rows_with_experts_that_never_appear_are_not_laid_out() -> None:
    """268 million experts in 4096 numbers: looked up one by one they would take minutes."""
    logged = {f"moe_ep_usage/L-{layer}_EP-65535": 1.0 for layer in range(4096)}
    run, *steps = records(Logger([(n, logged) for n in (1, 2, 3)]))
    assert run["model"]["num_experts"] == 65536
    assert all("tokens_per_expert" not in step for step in steps)


def test_numbers_without_end_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microscope_tui.sources.run_layout.MAX_NUMBERS", 3)
    steps = [(n, shares(n, [0.5, 0.5])) for n in range(5)]
    run = of_kind(records(Logger(steps)), "run")[-1]
    assert len(run["model"]["layers"]) <= 3


def test_a_layer_that_appears_later_is_in_a_header_behind_which_all_steps_are_written_again() -> (
    None
):
    first, both = shares(2, [0.5, 0.5]), shares(2, [0.5, 0.5]) | shares(1, [0.9, 0.1])
    rows = [(1, first), (2, first), (3, first), (4, first), (5, both), (6, first)]
    found = records(Logger(rows))
    header, again = of_kind(found, "run")
    assert (header["model"]["layers"], again["model"]["layers"]) == ([2], [1, 2])
    assert again["resumed_at_step"] == 1
    after = found[found.index(again) + 1 :]
    even, late = [500_000, 500_000], [900_000, 100_000]
    assert [step["step"] for step in after] == [1, 2, 3, 4, 5, 6]
    assert [step["tokens_per_expert"][1] for step in after] == [even] * 6
    assert [step["tokens_per_expert"][0] for step in after] == [None] * 4 + [late, None]


def test_an_expert_that_appears_later_has_no_tokens_before_and_may_be_missing_after() -> None:
    few, all_four = dict([*COUNTS.items()][:3]), COUNTS | {"router/entropy/1": 0.5}
    other = {"router/entropy/1": 0.5}  # a step without counts gets none
    rows = [*((n, few) for n in (1, 2, 3)), (4, other), (5, all_four), (6, few)]
    found = records(Logger(rows))
    after = found[found.index(of_kind(found, "run")[-1]) + 1 :]
    counts = [(step.get("tokens_per_expert") or [None])[0] for step in after]
    assert counts == [[2, 2, 2, 0]] * 3 + [None, [2, 2, 2, 2], None]


def test_biases_of_experts_that_appear_later_are_not_made_up() -> None:
    biases = {f"router/expert_bias/0/{expert}": 0.5 for expert in range(4)}
    few = dict([*biases.items()][:3])
    found = records(Logger([*((n, COUNTS | few) for n in (1, 2, 3)), (4, COUNTS | biases)]))
    assert [step.get("expert_bias") for step in found[-4:]] == [None] * 3 + [[[0.5] * 4]]


def test_the_log_has_no_restart_at_step_0_when_it_is_written_again() -> None:
    rows = [(n, EVEN) for n in range(4)]
    found = records(Logger([*rows, (4, EVEN | shares(5, [0.5, 0.5]))]))
    assert of_kind(found, "run")[-1]["resumed_at_step"] == 1
    assert list(counts_of(found)) == [0, 1, 2, 3, 4]  # without a defect


def test_what_comes_before_damage_is_written_again_too() -> None:
    class Damaged(Logger):
        def again(self, keys: sources.Keys) -> "Logger":
            logger = super().again(keys)
            logger.__class__ = Damaged
            return logger

        def read(self, max_bytes: int = 0) -> Rows:
            if self._read == len(self.rows):
                raise Unreadable("damaged")
            return super().read(max_bytes)

    logger = Damaged([*((n, EVEN) for n in (1, 2, 3)), *((n, EVEN | COUNTS) for n in (4, 5))])
    reader, found = RowRecords(logger, "run", "test", sources.SourceRequest()), []
    while len(found) < 10:  # two headers, three steps of the first and five of the second
        found += reader.read().records
    with pytest.raises(Unreadable):
        reader.read()
    assert [record["step"] for record in found[-5:]] == [1, 2, 3, 4, 5]
    assert len(found[-6]["model"]["layers"]) == 2


@pytest.mark.parametrize(
    ("tokens", "k"),
    [
        (((4, 4), (4, 4), (4, 4)), 2),
        (((4, 4), (8, 4), (12, 4)), None),  # cumulative
        (((4, 4), (4, 3), (4, 4)), None),  # a layer drops some
        (((3, 4), (3, 4), (3, 4)), None),
        (((4, 4), (4, 4)), None),  # too few lines
        (((16, 4), (16, 4), (16, 4)), None),
        (((2, 4), (2, 4), (2, 4)), None),  # all experts: it is the column that is wrong
    ],
)
def test_a_bare_column_of_tokens_gives_k_if_all_layers_of_three_lines_agree(
    tokens: Sequence[tuple[int, int]], k: int | None
) -> None:
    rows = []
    for step, (of_step, of_layer) in enumerate(tokens, 1):
        second = {f"router/tokens_per_expert/1/{expert}": of_layer / 2 for expert in range(4)}
        rows.append((step, COUNTS | second | {"train/tokens": float(of_step)}))
    assert records(Logger(rows))[0]["model"]["top_k"] == k
    run = Live()
    live = [record for row in rows for record in run.log(row)]
    assert of_kind(live, "run")[-1]["model"]["top_k"] == k
    note = "k = 2 is counts ÷ train/tokens; if that is of one rank, give --top-k"
    assert run.reader.missing == (note if k else "")
    last = live[-1]
    assert (last["step"], last.get("tokens")) == (len(rows), 4 if k else None)


def test_a_known_k_needs_no_column_and_no_note() -> None:
    logger = Logger([(n, COUNTS | {"tokens": 2.0}) for n in (1, 2, 3)])
    reader = RowRecords(logger, "run", "test", sources.SourceRequest(top_k=2))
    found = [record for _ in range(3) for record in reader.read().records]
    assert found[-1]["tokens"] == 4
    assert not reader.missing


def test_a_column_of_tokens_alone_is_no_router() -> None:
    assert not records(Logger([(1, {"tokens": 4.0}), (2, {"tokens": 4.0})]))


@pytest.mark.parametrize("prefix", ["mtp/", "mtp_1/", "draft/"])
def test_a_loss_beside_the_one_of_the_training_is_not_the_loss(prefix: str) -> None:
    both = [("train/loss", 3.0), (f"{prefix}loss", 5.0)]
    for logged in (both, both[::-1]):
        step = records(Logger([(1, EVEN | dict(logged))]))[-1]
        assert step["loss"] == 3.0
    assert "loss" not in records(Logger([(1, EVEN | dict(both[1:]))]))[-1]


def test_the_users_mapping_wins_over_the_known_keys() -> None:
    maps = (r"entropy=moe_maxvio_batch/L-(?P<layer>\d+)",)
    _, step = records(Logger([(1, {"moe_maxvio_batch/L-0": 0.5})], maps=maps))
    assert step["router"] == {"entropy": [0.5]}


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        ("share", "write QUANTITY=REGEX"),
        ("shares=x(?P<expert>1)", "no such quantity"),
        ("share=a(b", "not a regular expression"),
        ("share=a(?P<layer>1)", "a number per expert"),
        ("entropy=a(?P<expert>1)", "a number per layer"),
        ("entropy=a(?P<rank>1)", "unknown group rank"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_refused(pair: str, why: str) -> None:
    with pytest.raises(sources.BadMapping, match=why):
        sources.rules_of([pair])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=64))
def test_shares_become_counts_that_sum_to_a_million(row: list[float]) -> None:
    counts = counts_of_shares(row)
    if not sum(row) > 0:
        assert counts is None
        return
    assert counts is not None
    assert sum(counts) == SHARES_SUM
    exact = [share / sum(row) * SHARES_SUM for share in row]
    assert all(abs(count - share) < 1 + 1e-6 for count, share in zip(counts, exact, strict=True))


@pytest.mark.parametrize("row", [[-0.1, 1.1], [float("nan"), 1.0], [float("inf"), 1.0], [0.0, 0.0]])
def test_what_is_no_distribution_has_no_counts(row: list[float]) -> None:
    assert counts_of_shares(row) is None


@pytest.mark.parametrize(("others", "found"), [(100, 2), (30_000, None)])
def test_a_huge_configuration_is_not_searched_to_its_end(others: int, found: int | None) -> None:
    config = {"model": {"top_k": 2}, "other": {str(n): 0 for n in range(others)}}
    assert config_number(config, ("top_k",)) == found


def test_keys_without_end_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microscope_tui.sources.keys.MAX_REMEMBERED_CHARACTERS", 1000)
    keys = sources.Keys()
    for number in range(100):
        assert keys[f"moe_entropy/L-{number}"] == ("entropy", number, None, "")
    assert sum(map(len, keys)) < 1000


EVEN, UNEVEN = shares(3, [0.5, 0.5]), shares(3, [0.75, 0.25])


class Live:
    """A run that is read as far as it was logged, as if nothing followed for a while."""

    def __init__(self) -> None:
        self.logger = Logger([])
        self.reader = RowRecords(self.logger, "run", "test", sources.SourceRequest())

    def log(self, *rows: Logged) -> list[dict[str, Any]]:
        self.logger.rows += rows
        found = list(self.reader.read().records)
        while not self.reader.exhausted:
            found += self.reader.read().records
        return found


def test_the_last_step_is_returned_once_nothing_was_written_for_a_while(monkeypatch: Any) -> None:
    monkeypatch.setattr(step_rows, "COMPLETE_AFTER_S", 1e6)
    run = Live()
    run.logger.rows, run.logger.modified = [(1, EVEN)], time.time()
    assert not run.reader.read().records
    assert not run.reader.exhausted
    assert run.reader.wait_s() > 0
    run.logger.modified = 0.0
    assert [record.get("step") for record in run.reader.read().records] == [None, 1]
    assert run.reader.exhausted
    assert run.reader.wait_s() == 0


def test_a_logger_that_never_rests_has_an_end_for_readers(monkeypatch: Any) -> None:
    monkeypatch.setattr(step_rows, "COMPLETE_AFTER_S", 0.05)
    logger = Logger([])
    reader = RowRecords(logger, "run", "test", sources.SourceRequest())
    steps, begun = 0, time.monotonic()
    while not steps or not reader.exhausted:
        steps += 1
        logger.rows.append((steps, EVEN))
        logger.modified = time.time()
        reader.read()
        assert steps < 1000
        time.sleep(0.01)
    assert time.monotonic() - begun > 0.1, "the last step is waited for"


def test_the_late_rest_of_a_step_writes_the_whole_step_again() -> None:
    run = Live()
    before = run.log((1, EVEN), (2, EVEN), (3, {"loss": 1.5}))
    assert [record.get("step") for record in before] == [None, 1, 2, 3]
    header, again = run.log((3, UNEVEN))
    assert header == before[0] | {"resumed_at_step": 3}
    assert (again["loss"], again["tokens_per_expert"]) == (1.5, [[750_000, 250_000]])
    (after,) = run.log((4, {"loss": 1.5, **UNEVEN}))
    assert after == again | {"step": 4, "time": 4.0}
    assert list(counts_of([*before, header, again, after])) == [1, 2, 3, 4]  # without a defect


def test_k_of_the_late_rest_of_a_step_is_that_of_a_later_start() -> None:
    run, rest = Live(), {"tokens_per_step": 4.0}
    live = [*run.log((1, COUNTS)), *run.log((1, rest)), *run.log((2, COUNTS))]
    later = records(Logger([(1, COUNTS | rest), (2, COUNTS)]))
    assert [one["model"]["top_k"] for one in of_kind(live, "run")] == [None, 2]
    assert later[0]["model"]["top_k"] == 2


@pytest.mark.parametrize("step", [0, 1])
def test_the_late_rest_of_a_step_before_the_header_is_merged(step: int) -> None:
    run = Live()
    assert not run.log((step, {"loss": 2.0}))
    _, found = run.log((step, EVEN))
    assert (found["loss"], found["tokens_per_expert"]) == (2.0, [[500_000, 500_000]])


def test_a_logger_that_writes_steps_in_parts_is_waited_for_from_then_on(monkeypatch: Any) -> None:
    now = [1000.0]
    clock = SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0])
    monkeypatch.setattr(step_rows, "time", clock)
    run = Live()
    kinds = []
    for step in range(1, 8):
        for part in ({"loss": 2.0}, EVEN):
            run.logger.rows.append((step, part))
            run.logger.modified = now[0]
            for _ in range(10):  # a second and a half until the next part
                kinds += [(r["kind"], r.get("step")) for r in run.reader.read().records]
                now[0] += 0.15
    steps = [step for kind, step in kinds if kind == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]  # the first was merged before there was a header
    assert [kind for kind, _ in kinds].count("run") == 1
    now[0] += 3.0
    assert [r["step"] for r in run.reader.read().records] == [7]


def test_the_late_rest_of_step_0_leaves_a_log_that_resumes_nowhere() -> None:
    run = Live()
    found = [*run.log((0, EVEN)), *run.log((0, {"loss": 2.0})), *run.log((1, {"loss": 1.5}))]
    assert [record.get("step") for record in found] == [None, 0, 0, 1]
    assert not any("resumed_at_step" in record for record in found)
