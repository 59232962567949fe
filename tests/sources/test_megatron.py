"""Router traces of Megatron-LM: exact counts over micro-batches and ranks, and their traps."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.extensions.dumps import megatron
from microscope_tui.extensions.dumps.megatron import MegatronReader
from microscope_tui.sources.reader import Record, SourceRequest, Unreadable
from tests.sources import reading
from tests.sources.reading import counts_of, drained, header_of, model_of, restarted, settle
from tests.sources.sound import call

recognises = MegatronReader.recognises

LAYERS, EXPERTS, K, TOKENS, STEPS = 3, 8, 2, 20, 3
Ids = list[list[int]]
"""Experts of each token."""
Chosen = dict[tuple[int, int], Ids]
"""By step and layer."""


def chosen(
    seed: int,
    layers: Iterable[int] = range(LAYERS),
    steps: int = STEPS,
    tokens: int = TOKENS,
    experts: int = EXPERTS,
) -> Chosen:
    chance = random.Random(seed)
    places = [(step, layer) for step in range(steps) for layer in layers]
    return {at: [chance.sample(range(experts), K) for _ in range(tokens)] for at in places}


def line(rank: int, step: int, layer: int, ids: Ids, **more: object) -> str:
    return json.dumps(call(rank, step, layer, ids, **more)) + "\n"


def trace(folder: Path, rank: int, *micro_batches: Chosen, more: str = "") -> Path:
    path = folder / f"router_trace_rank{rank}.jsonl"
    calls = [(*at, ids) for batch in micro_batches for at, ids in batch.items()]
    calls.sort(key=lambda call: call[0])
    path.write_text("".join(line(rank, *call) for call in calls) + more)
    return settle(path, 60)


def counted(ids: Ids) -> list[int]:
    found = Counter(expert for token in ids for expert in token)
    return [found[expert] for expert in range(EXPERTS)]


def reader_of(path: Path, stages: int = 1, experts: int | None = EXPERTS) -> MegatronReader:
    request = SourceRequest(num_experts=experts, pipeline_parallel=stages)
    return MegatronReader(path, "traced", request)


def read(path: Path, stages: int = 1, experts: int | None = EXPERTS) -> list[Record]:
    return drained(reader_of(path, stages, experts))


def expected(*batches: Chosen) -> dict[int, dict[str, list[int]]]:
    steps: dict[int, dict[str, list[int]]] = {}
    for at in sorted({at for batch in batches for at in batch}):
        ids = [token for batch in batches for token in batch.get(at, [])]
        steps.setdefault(at[0] + 1, {})[f"L{at[1]}"] = counted(ids)
    return steps


def test_micro_batches_of_a_step_are_summed(tmp_path: Path) -> None:
    batches = [chosen(seed) for seed in range(4)]
    records = read(trace(tmp_path, 0, *batches))
    assert counts_of(records) == expected(*batches)
    assert records[1]["tokens"] == 4 * TOKENS
    assert header_of(records)["source"] == {"writer": "megatron", "counts": "exact"}
    assert header_of(records)["profile"] == "pretrain"
    model = model_of(records)
    assert (model["layers"], model["num_experts"], model["top_k"]) == ([0, 1, 2], EXPERTS, K)


FIRST, SECOND = chosen(0), chosen(1)
ALIKE_IN_ONE_LAYER = SECOND | {(step, 1): FIRST[step, 1] for step in range(STEPS)}
BACKWARDS = dict(reversed(FIRST.items()))


@pytest.mark.parametrize(
    ("ranks", "batches"),
    [
        ([[FIRST], [SECOND]], [FIRST, SECOND]),
        ([[FIRST], [FIRST], [SECOND], [SECOND]], [FIRST, SECOND]),
        ([[FIRST], [ALIKE_IN_ONE_LAYER]], [FIRST, ALIKE_IN_ONE_LAYER]),
        ([[FIRST, SECOND, SECOND, BACKWARDS]], [FIRST, SECOND]),
        ([[FIRST], []], [FIRST]),
    ],
    ids=["summed", "siblings", "alike in one layer", "recomputed", "a stage without routers"],
)
def test_every_choice_of_every_rank_counts_once(ranks: Any, batches: Any, tmp_path: Path) -> None:
    for rank, traced in enumerate(ranks):
        trace(tmp_path, rank, *traced)
    records = read(tmp_path)
    assert records == drained(reader_of(tmp_path), 1000), "in small reads"
    assert counts_of(records) == expected(*batches)
    assert records[1]["tokens"] == len(batches) * TOKENS
    note = header_of(records)["source"].get("note", "")
    assert ("give --pipeline-parallel" in note) == (len(ranks) * len(batches) > 2)


def test_blocks_of_multi_token_prediction_are_routers_of_their_own(tmp_path: Path) -> None:
    ids = chosen(0, steps=1)
    ahead = [chosen(seed, [0], 1, TOKENS - 1 - seed)[0, 0] for seed in range(2)]
    more = "".join(line(0, 0, 0, each, block="mtp", mtp_idx=n) for n, each in enumerate(ahead))
    records = read(trace(tmp_path, 0, ids, more=more))
    assert model_of(records)["layer_names"] == ["L0", "L1", "L2", "mtp.0", "mtp.1"]
    assert model_of(records)["layers"] == [0, 1, 2, 3, 4]
    assert list(counts_of(records)[1].values()) == list(map(counted, [*ids.values(), *ahead]))
    tokens = [TOKENS, TOKENS, TOKENS, TOKENS - 1, TOKENS - 2]
    ((_, entry),) = reading.entries_of(records)
    assert entry.record.router.tokens == tokens


@pytest.mark.parametrize("step", [0, 1])
def test_stages_with_other_layers_are_refused_without_the_layout(step: int, tmp_path: Path) -> None:
    trace(tmp_path, 0, FIRST)
    trace(tmp_path, 1, {at: ids for at, ids in SECOND.items() if at != (step, 0)})
    why = rf"ranks 0 and 1 .* in step {step} \(L0, L1, L2; L1, L2\): layers .* give"
    with pytest.raises(Unreadable, match=why):
        read(tmp_path)


def test_the_layers_of_pipeline_stages_are_numbered_through(tmp_path: Path) -> None:
    first = [chosen(seed, [1, 2]) for seed in range(2)]
    second = [chosen(seed, [0, 1]) for seed in range(2, 4)]
    for rank, ids in enumerate([*first, *second]):
        trace(tmp_path, rank, ids)
    moved = [{(step, layer + 3): v for (step, layer), v in ids.items()} for ids in second]
    records = read(tmp_path, stages=2)
    assert counts_of(records) == expected(*first, *moved)
    assert model_of(records)["layers"] == [1, 2, 3, 4]
    assert records[1]["tokens"] == 2 * TOKENS
    assert "note" not in header_of(records)["source"]


@pytest.mark.parametrize(("ranks", "stages"), [([0, 1, 2], 2), ([0, 2], 2)])
def test_misfit_ranks_are_refused(tmp_path: Path, ranks: list[int], stages: int) -> None:
    for rank in ranks:
        trace(tmp_path, rank, chosen(rank))
    with pytest.raises(Unreadable, match=f"do not make {stages} pipeline stages"):
        read(tmp_path, stages)


def test_an_interrupted_last_step_is_left_out(tmp_path: Path) -> None:
    first, second = chosen(0), chosen(1)
    trace(tmp_path, 0, first)
    trace(tmp_path, 1, {k: v for k, v in second.items() if k != (STEPS - 1, LAYERS - 1)})
    found = counts_of(read(tmp_path))
    complete = expected(first, second)
    assert found == {step: complete[step] for step in range(1, STEPS)}


def test_one_rank_of_several_is_marked_as_such(tmp_path: Path) -> None:
    path = trace(tmp_path, 0, chosen(0))
    assert header_of(read(path))["source"]["counts"] == "exact"
    trace(tmp_path, 1, chosen(1))
    assert header_of(read(path))["source"]["counts"] == "local_rank"


def test_the_largest_choice_gives_the_number_of_experts_told_in_the_header(tmp_path: Path) -> None:
    ids = chosen(0, steps=12, experts=6)
    ids[11, 0][0][0] = 7
    records = read(trace(tmp_path, 0, ids), experts=None)
    assert [r["model"]["num_experts"] for r in records if r["kind"] == "run"] == [6, 8]
    assert "--num-experts" in header_of(records)["source"]["note"]
    with pytest.raises(Unreadable, match="expert 7 was chosen, but --num-experts is 6"):
        read(tmp_path, experts=6)


def test_steps_follow_as_ranks_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron, "COMPLETE_AFTER_S", 0.0)
    batches = [chosen(seed) for seed in range(2)]
    paths = [tmp_path / f"router_trace_rank{rank}.jsonl" for rank in range(2)]
    for path in paths:
        path.touch()
    reader = reader_of(tmp_path)
    records = list(reader.read().records)
    for step in range(STEPS):
        for rank, path in enumerate(paths):
            assert not [r for r in records if r.get("step", 0) > step]  # both must be past it
            with path.open("a") as file:
                for layer in range(LAYERS):
                    file.write(line(rank, step, layer, batches[rank][step, layer]))
            records += reader.read().records
        assert records[-1]["step"] == step + 1
    assert counts_of(records) == expected(*batches)
    assert (reader.offset, reader.exhausted) == (reader.size, True)


def test_a_rank_far_behind_is_given_up_and_restarts_reading_when_it_writes(tmp_path: Path) -> None:
    batches = [chosen(seed) for seed in range(2)]
    trace(tmp_path, 0, batches[0])
    trace(tmp_path, 1)
    reader = reader_of(tmp_path)
    assert counts_of(drained(reader)) == expected(batches[0])
    trace(tmp_path, 1, batches[1])
    assert counts_of(restarted(reader)) == expected(*batches)


GOOD = line(0, 3, 1, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("hello\n", "not a line of a router trace"),
        (GOOD.replace('"num_tokens": 2', '"num_tokens": 3'), "num_tokens is 3"),
        (GOOD.replace('"topk": 2', '"topk": 3'), "topk 3"),
        (GOOD.replace("[3, 4]", "[3]"), r"2 tokens with \[1, 2\] choices"),
        (GOOD.replace("[3, 4]", "[3, -4]"), "not a line"),
        (GOOD.replace("[3, 4]", "[3, 99999999]"), "not a line .*6553"),
        (GOOD.replace("[3, 4]", "[3, 4.5]"), "not a line"),
        (GOOD.replace('"layer": 1', '"layer": 9999'), "not a line"),
        (GOOD.replace("decoder", "enc\\u001b[2J"), "neither decoder nor mtp"),
        (GOOD.replace('"step": 3', '"step": 0'), "step 0 after step 2; two runs"),
        (GOOD.replace('"step": 3', '"step": "\\u202e"'), "not a line"),
        ('{"step": 1}\n', "not a line"),
    ],
)
def test_damage_is_refused_after_the_steps_before_it(bad: str, why: str, tmp_path: Path) -> None:
    ids = chosen(0)
    path = trace(tmp_path, 0, ids, more=bad)
    reader = reader_of(path)
    records = reader.read().records
    before = expected(ids)
    assert counts_of(records) == {step: before[step] for step in range(1, STEPS)}
    for _ in range(2):
        with pytest.raises(Unreadable, match=why) as refused:
            reader.read()
        assert f"line {LAYERS * STEPS + 1}: " in str(refused.value)
        assert str(refused.value).isprintable()


def test_a_folder_is_recognised_by_any_of_its_traces(tmp_path: Path) -> None:
    assert not recognises(tmp_path)
    trace(tmp_path, 0)  # its rank has no router
    assert not recognises(tmp_path)
    trace(tmp_path, 1, chosen(0))
    assert recognises(tmp_path)
