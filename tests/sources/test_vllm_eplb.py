"""Expert loads of vLLM: sums over copies, both revisions, a live server, lines that do not fit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from microscope_tui.sources import vllm_eplb
from microscope_tui.sources.reader import Record, SourceRequest, Unreadable
from microscope_tui.sources.vllm_eplb import VllmReader
from tests.sources.reading import counts_of, drained, header_of, restarted, settle
from tests.sources.sound import RUN, lines, loads

META = {
    "record_type": "eplb_load_meta", "version": 1, "model": "test-model", "num_ranks": 2,
    "num_groups": 1, "num_nodes": 1, "num_layers": 2, "num_redundant_experts": 2,
}  # fmt: skip
SESSION = {"record_type": "session_metadata", "vllm_argv": ["serve"], "step": None}
BENCH = {"record_type": "bench_run_start", "run_index": 0, "label": "warm-up"}


def written(folder: Path, *objects: Mapping[str, object]) -> Path:
    path = folder / "eplb_data.jsonl"
    path.write_bytes(lines(objects))
    return settle(path)


def opened(path: Path) -> VllmReader:
    return VllmReader(path, "run", SourceRequest(top_k=2))


def stats(step: int, load: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> Record:
    return loads(step, []) | {"expert_load": load, "p2l_map": slots}


def test_the_loads_of_copies_are_summed_whatever_the_map_of_the_step(tmp_path: Path) -> None:
    first = stats(3, [[10, 1, 5, 2, 4, 0]], [[0, 1, 2, 3, 0, 1]])
    moved = stats(9, [[1, 2, 3, 4, 5, 6]], [[3, 3, 2, 1, 0, 3]])
    records = drained(opened(written(tmp_path, META, first, moved)))
    assert counts_of(records) == {3: {"L0": [14, 1, 5, 2]}, 9: {"L0": [5, 4, 3, 9]}}


def test_both_revisions_give_the_ranks_and_lines_of_scripts_are_passed_over(tmp_path: Path) -> None:
    tokens = {"num_ranks": 2, "num_layers": 2, "tokens": [[4, 4], [4, 4]]}
    new = [SESSION, META, BENCH, *(loads(at, counts) for at, counts in enumerate(RUN, 1))]
    old = [SESSION, BENCH, *(loads(at, counts, **tokens) for at, counts in enumerate(RUN, 1))]
    of_new, of_old = (drained(opened(written(tmp_path, *objects))) for objects in (new, old))
    assert of_new == of_old
    assert counts_of(of_new) == {
        step: {f"L{at}": list(row) for at, row in enumerate(counts)}
        for step, counts in enumerate(RUN, 1)
    }
    assert {record["tokens"] for record in of_new if record["kind"] == "step"} == {4}
    header = header_of(of_new)
    assert (header["expert_parallel_size"], header["profile"]) == (2, "eval")
    assert header["source"] == {"writer": "vllm-eplb", "counts": "exact", "note": vllm_eplb.LAYERS}
    assert "expert_parallel_size" not in header_of(drained(opened(written(tmp_path, new[3]))))


def test_the_first_step_of_a_server_is_not_taken_for_its_end(tmp_path: Path) -> None:
    path = written(tmp_path, META, loads(1, RUN[0]))
    reader = opened(path)
    assert [record["kind"] for record in drained(reader)] == ["run", "step"]
    with path.open("ab") as file:
        file.write(lines([loads(2, RUN[1])]))
    settle(path)
    assert [record["kind"] for record in drained(reader)] == ["step"]


def test_a_second_server_is_refused_after_the_steps_of_the_first(tmp_path: Path) -> None:
    path = written(tmp_path, META, loads(7, RUN[0]), META, loads(7, RUN[1]))
    reader = opened(path)
    assert counts_of(reader.read().records) == {7: {"L0": RUN[0][0], "L1": RUN[0][1]}}
    for _ in range(2):
        with pytest.raises(Unreadable, match=r"eplb_data\.jsonl, line 4: step 7 after step 7"):
            reader.read()
    settle(written(tmp_path, META, loads(1, RUN[2])), 20)
    assert [*counts_of(restarted(reader))] == [1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"record_type": "eplb_load_stats", "version": 1, "st', "truncated"),
        (b'{"record_type": "eplb_load_stats", "step": 2, "tokens": [[1]]}', "`expert_load`"),
        (b'{"step": 2, "loss": 1.0}', "`record_type`"),
        (json.dumps(stats(2, [[1, 2]], [[0, 1], [0, 1]])).encode(), "do not fit"),
        (json.dumps(stats(2, [[1, 2]], [[0, 1, 1]])).encode(), "do not fit"),
        (json.dumps(stats(2, [[1, 2]], [[0, 2]])).encode(), "an expert without one"),
        (json.dumps(stats(2, [[1, -2]], [[0, 1]])).encode(), ">= 0"),
        (json.dumps(stats(2, [], [])).encode(), "length >= 1"),
        (b"[" * 100_000, "Expected `object`"),
    ],
)
def test_a_bad_line_is_skipped_and_counted(line: bytes, why: str, tmp_path: Path) -> None:
    path = written(tmp_path, META, loads(1, RUN[0]))
    path.write_bytes(path.read_bytes() + line + b"\n\n" + lines([loads(3, RUN[1])]))
    reader = opened(settle(path))
    assert [*counts_of(drained(reader))] == [1, 3]
    assert reader.defects.count == 1
    assert reader.defects.first[0].startswith("line 3: no line of loads: ")
    assert why in reader.defects.first[0]
