"""Keys of reinforcement learning, in lines as the frameworks write them.

volcengine/verl: verl/trainer/ppo/metric_utils.py (MaxVio of all hidden layers),
verl/utils/tracking.py (the file logger) · PrimeIntellect-ai/prime-rl: trainer/moe_runtime.py,
trainer/rl/train.py, utils/monitor/file.py · THUDM/slime: slime/backends/megatron_utils/model.py ·
radixark/miles: miles/utils/audit_utils/event_logger/{models,logger}.py
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from microscope_tui import measures
from microscope_tui.sources import Keys, SourceRequest, rules_of
from microscope_tui.sources.row_records import RowRecords
from microscope_tui.sources.text_rows import JsonlReader
from tests.diagnosis.conftest import judge
from tests.sources.reading import drained, header_of, settle, translated

E, K = 64, 8
DENSE = [800] + [0] * 63
"""vLLM returns zeros for a layer without a router: expert 0, k times a token."""
COLLAPSED = [100] * 8 + [0] * 56
EVEN = [[9 + (expert * step) % 7 for expert in range(E)] for step in range(1, 5)]


def vio(layers: Sequence[Sequence[int]], prefix: str = "rollout/moe") -> dict[str, float]:
    row = {}
    for i, counts in enumerate(layers):
        off = [count / sum(counts) * len(counts) - 1 for count in counts]
        row[f"{prefix}/max_vio/layer_{i}"] = max(off)
        row[f"{prefix}/min_vio/layer_{i}"] = min(off)
        row[f"{prefix}/avg_vio/layer_{i}"] = sum(map(abs, off)) / len(off)
    return row


def written(folder: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path = folder / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert JsonlReader.recognises(settle(path))
    return path


def read(
    folder: Path, rows: Sequence[dict[str, Any]], *maps: str, **asked: int
) -> tuple[list[dict[str, Any]], str]:
    path = written(folder, ({"step": step, "data": row} for step, row in enumerate(rows, start=1)))
    rules = rules_of(maps)
    request = SourceRequest(rules=rules, **asked)
    reader = RowRecords(JsonlReader(path, Keys(rules)), "run", "test", request)
    return drained(reader), reader.missing


def names(records: Sequence[dict[str, Any]]) -> Any:
    return header_of(records)["model"]["layer_names"]


DENSE_FIRST = [DENSE, COLLAPSED, EVEN[0]]
L0, UNKNOWN_E = "L0 (MaxVio 63 in every step)", "no balance c: give --num-experts"


@pytest.mark.parametrize(
    ("layers", "asked", "said"),
    [
        (DENSE_FIRST, {"top_k": K}, f"dense, left out: {L0}"),
        (DENSE_FIRST, {"top_k": K, "num_experts": E}, f"dense, left out: {L0}"),
        (DENSE_FIRST, {}, f"dense or wholly collapsed, left out: {L0}: give --top-k"),
        (DENSE_FIRST, {"top_k": 1}, f"{L0}: with k = 1 both look the same"),
        (DENSE_FIRST[1:], {"top_k": K}, UNKNOWN_E),  # 8 experts would have loads of at most 1
        ([[6, 2, 2, 2], [3, 3, 3, 3]], {}, UNKNOWN_E),  # none without tokens
        ([DENSE, DENSE], {}, UNKNOWN_E),  # some layer must have a router
    ],
)
def test_a_dense_layer_is_left_out_and_named_but_not_a_collapsed_one(
    tmp_path: Path, layers: list[list[int]], asked: dict[str, int], said: str
) -> None:
    records, missing = read(tmp_path, [vio(layers)] * 4, **asked)
    assert names(records) == (["L1", "L2"] if L0 in said else ["L0", "L1"])
    assert said == missing or (L0 in said and said in missing)


def test_max_min_and_avg_vio_give_effective_and_dead_experts(tmp_path: Path) -> None:
    records, _ = read(tmp_path, [vio(DENSE_FIRST[1:])] * 4, top_k=K, num_experts=E)
    assert records[-1]["router"]["effective_experts"][0] < 1.4 * K
    assert records[-1]["router"]["dead_experts"] == [1, 0]  # at least


def test_a_layer_whose_load_changes_is_shown_after_all(tmp_path: Path) -> None:
    rows = [vio([DENSE, EVEN[0]]), vio([DENSE, EVEN[1]]), vio([EVEN[2], EVEN[3]])] * 2
    records, missing = read(tmp_path, rows, top_k=K)
    assert names(records) == ["L0", "L1"]
    assert "dense" not in missing


@example([8] * 4 + [0] * 28 + [1] * 32)  # the bounds are far apart: no value
@given(st.lists(st.integers(0, 500), min_size=2, max_size=64).filter(any))
def test_the_effective_experts_are_at_most_what_avg_vio_gives(counts: list[int]) -> None:
    from microscope_tui.sources.run_layout import _effective

    load, true = measures.max_load(counts), measures.effective_experts(counts)
    assert load is not None
    assert true is not None
    moved = sum(abs(len(counts) * count / sum(counts) - 1) for count in counts) / len(counts) / 2
    found = _effective(moved, load, len(counts))
    assert found is None or true <= found * (1 + 1e-9) <= 1.5 * true * (1 + 1e-6)


def test_roles_are_never_mixed_and_a_map_chooses_one(tmp_path: Path) -> None:
    rows = [vio([even] * 3) | vio([COLLAPSED] * 2, "actor/moe") for even in EVEN]
    rows = [row | {"actor/grad_norm": 0.5, "critic/grad_norm": 9.0} for row in rows]
    records, missing = read(tmp_path, rows)
    assert names(records) == ["L0", "L1", "L2"]
    assert max(records[-1]["router"]["max_load"]) < 2
    assert records[-1]["grad_norm"] == 0.5
    assert "routers of rollout are shown, not of actor: --map chooses" in missing
    own = r"max_vio=actor/moe/max_vio/layer_(?P<layer>\d+)"
    records, missing = read(tmp_path, rows, own, top_k=K)
    assert records[-1]["router"]["max_load"] == [8.0, 8.0]
    assert "routers of actor are shown, not of rollout" in missing


def test_prime_rl_has_the_worst_layer_and_the_divergence_of_its_engine(tmp_path: Path) -> None:
    row = {"mismatch_kl/all/mean": 0.05, "kl_ent_ratio/mean": 0.2, "routing_confidence/mean": 0.4}
    row |= {"max_vio/max": 0.5, "expert_load/max_mean/max": 2.0, "expert_load/cold_frac/max": 0.25}
    path = written(tmp_path, ({"step": n, "time": 1e9 + n} | row for n in range(1, 41)))
    records = translated(JsonlReader(path, Keys()), num_experts=16, top_k=2)
    assert records[-1]["router"] == {
        "max_load": [2.0],  # MaxVio leaves out the k busiest experts
        "starved_experts": [4],
        "selected_mass": [0.4],
    }
    assert [one.rule for one in judge(records).episodes if one.severity > 0] == ["MISMATCH"]


@pytest.mark.parametrize(
    ("key", "value", "rules"),
    [
        ("train/train_rollout_logprob_abs_diff", 0.02, []),
        ("train/train_rollout_logprob_abs_diff", 0.3, ["MISMATCH"]),
        ("ci/r3_mismatch_fraction", 0.2, ["MISMATCH"]),
    ],
)
def test_events_of_miles_and_keys_of_slime_show_a_mismatch(
    tmp_path: Path, key: str, value: float, rules: list[str]
) -> None:
    event = {"timestamp": "2026-11-01T10:00:00Z", "source": {"component": "trainer"}, "attempt": 0}
    event |= {"type": "metric", "metrics": {key: value}}
    path = written(tmp_path, (event | {"rollout_id": n} for n in range(40)))
    assert [one.rule for one in judge(translated(JsonlReader(path, Keys()))).episodes] == rules
