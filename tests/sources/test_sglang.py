"""Dumps of SGLang's recorder: its counts, its traps, and dumps that appear while we look."""

from pathlib import Path
from typing import Any

import pytest
import torch

from microscope_tui.extensions.dumps.sglang import SGLangReader
from microscope_tui.sources import dumps
from microscope_tui.sources.reader import Record, SourceRequest, Unreadable
from tests.sources.reading import counts_of, drained, header_of, model_of, restarted, settle

LAYERS, LOGICAL, PHYSICAL, RANKS = 4, 6, 8, 2
DENSE = 0
"""The first layer has no router."""
MAP = torch.tensor([[(e + layer) % LOGICAL for e in range(PHYSICAL)] for layer in range(LAYERS)])


def counts(passes: int, experts: int = LOGICAL, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, 50, (passes, LAYERS, experts), generator=generator, dtype=torch.int32)
    found[:, DENSE] = 0
    return found


def stat(folder: Path, values: torch.Tensor, time: float = 1700000000.5, **more: Any) -> Path:
    path = folder / f"expert_distribution_recorder_{time}.pt"
    torch.save({"rank": 0, "logical_count": values, **more}, path)
    return settle(path)


def detail(
    folder: Path, rank: int, values: torch.Tensor, time: float, first: int = 0, **more: Any
) -> Path:
    """``values`` [passes, layers, physical experts] as the recorder of one rank writes them."""
    columns = {"global_physical_count": [value.clone() for value in values], **more}
    records = [
        {"forward_pass_id": first + index, "rank": rank, "gatherer_key": "primary"}
        | {key: each[index] for key, each in columns.items()}
        for index in range(len(values))
    ]
    path = folder / f"expert_distribution_recorder_{time}_{rank}.pt"
    torch.save({"records": records, "last_physical_to_logical_map": MAP}, path)
    return settle(path)


def logical(values: torch.Tensor) -> torch.Tensor:
    empty = torch.zeros(values.shape[0], LAYERS, LOGICAL, dtype=values.dtype)
    return empty.scatter_add(2, MAP.unsqueeze(0).expand(values.shape[0], -1, -1), values)


def reader_of(path: Path) -> SGLangReader:
    return SGLangReader(path, "served", SourceRequest())


def read(path: Path) -> list[Record]:
    return drained(reader_of(path))


def expected(values: torch.Tensor, first: int) -> dict[int, dict[str, list[int]]]:
    return {
        first + index: {f"L{layer}": rows[layer].tolist() for layer in range(1, LAYERS)}
        for index, rows in enumerate(values)
    }


@pytest.mark.parametrize("more", [{}, {"average_utilization_rate_over_window": None}])
def test_stat_counts_are_those_of_layers_with_routers(more: dict[str, Any], tmp_path: Path) -> None:
    values = counts(20)
    records = read(stat(tmp_path, values, **more))
    assert counts_of(records) == expected(values, 1)
    header = header_of(records)
    assert (header["source"]["counts"], header["profile"]) == ("exact", "eval")
    assert header["model"]["num_hidden_layers"] == LAYERS
    assert header["time"] == 1700000000.5
    assert (header["model"]["layers"], header["model"]["num_experts"]) == ([1, 2, 3], LOGICAL)


def test_unused_passes_of_the_buffer_are_dropped_and_no_order_is_promised(tmp_path: Path) -> None:
    values = counts(30)
    values[[2, 3, 29]] = 0
    records = read(stat(tmp_path, values))
    assert counts_of(records) == expected(values[values.sum((1, 2)) > 0], 1)
    assert "order of the passes is not guaranteed" in header_of(records)["source"]["note"]


def test_physical_counts_are_summed_over_ranks_and_mapped_to_logical_ones(tmp_path: Path) -> None:
    ranks = [counts(12, PHYSICAL, rank) for rank in range(RANKS)]
    for rank, values in enumerate(ranks):
        detail(tmp_path, rank, values, 1700000000.5 - rank, first=7)
    records = read(tmp_path)
    assert counts_of(records) == expected(logical(sum(ranks)), 8)  # type: ignore[arg-type]
    assert header_of(records)["source"] == {"writer": "sglang", "counts": "exact"}
    assert model_of(records).get("top_k") is None


def test_one_file_of_several_ranks_is_marked_as_such(tmp_path: Path) -> None:
    path = detail(tmp_path, 1, counts(2, PHYSICAL), 1700000000.5)
    for source in (path, tmp_path):  # rank 0 is not in the folder
        assert header_of(read(source))["source"]["counts"] == "local_rank"
    other = detail(tmp_path, 0, counts(2, PHYSICAL), 1700000000.6)
    assert header_of(read(other))["source"]["counts"] == "local_rank"
    assert header_of(read(tmp_path))["source"]["counts"] == "exact"
    path.unlink()
    assert header_of(read(other))["source"]["counts"] == "exact"  # the only rank


def test_what_comes_before_a_damaged_dump_is_returned_first(tmp_path: Path) -> None:
    values = counts(3)
    stat(tmp_path, values, 1.5)
    stat(tmp_path, values, 2.5).write_bytes(b"not a zip file")
    settle(tmp_path)
    reader = reader_of(tmp_path)
    assert counts_of(reader.read().records) == expected(values, 1)
    with pytest.raises(Unreadable, match="cut off"):
        reader.read()


def test_of_a_dump_per_token_the_counts_are_read_and_not_the_choices(tmp_path: Path) -> None:
    values = counts(3, PHYSICAL)
    ids = torch.zeros(3, LAYERS, 5, 8, dtype=torch.int32)
    detail(tmp_path, 0, values, 1.5, topk_ids_of_layer=ids, input_ids=[[1] * 5] * 3)
    records = read(tmp_path)
    assert counts_of(records) == expected(logical(values), 1)
    assert model_of(records).get("top_k") is None
    assert model_of(records)["num_hidden_layers"] == LAYERS


def test_a_layer_that_is_used_later_gets_a_header_of_its_own(tmp_path: Path) -> None:
    values = counts(20)
    values[:12, 3] = 0
    records = read(stat(tmp_path, values))
    found = counts_of(records)
    assert sum(record["kind"] == "run" for record in records) == 2
    assert set(found[12]) == {"L1", "L2"}
    assert found[13]["L3"] == values[12, 3].tolist()


def test_new_dumps_of_a_live_server_are_read_when_all_ranks_have_written(tmp_path: Path) -> None:
    reader = reader_of(tmp_path)
    assert drained(reader) == []
    values = [counts(10, PHYSICAL, seed) for seed in range(4)]
    for rank in range(RANKS):
        detail(tmp_path, rank, values[rank], 10.5 + rank / 10)
    records = drained(reader)
    assert counts_of(records) == expected(logical(values[0] + values[1]), 1)
    detail(tmp_path, 0, values[2], 20.5, first=10)
    (tmp_path / "expert_distribution_recorder_20.6_1.pt").write_bytes(b"PK\3\4 torn")
    assert reader.read().records == []  # the second rank still writes
    assert not reader.exhausted
    detail(tmp_path, 1, values[3], 20.6, first=10)
    records += drained(reader)
    both = torch.cat([values[0] + values[1], values[2] + values[3]])
    assert counts_of(records) == expected(logical(both), 1)
    assert (reader.offset, reader.deleted) == (reader.size, False)


def test_a_rank_that_comes_late_restarts_the_reading(tmp_path: Path) -> None:
    reader = reader_of(tmp_path)
    values = [counts(10, PHYSICAL, seed) for seed in range(2)]
    detail(tmp_path, 0, values[0], 10.5)
    assert counts_of(drained(reader)) == expected(logical(values[0]), 1)
    detail(tmp_path, 1, values[1], 10.6)
    assert counts_of(restarted(reader)) == expected(logical(values[0] + values[1]), 1)


def test_a_server_that_restarts_counts_its_passes_again(tmp_path: Path) -> None:
    values = [counts(4, PHYSICAL, seed) for seed in range(4)]
    detail(tmp_path, 0, values[0], 10.5)
    detail(tmp_path, 1, values[1], 10.4)
    detail(tmp_path, 0, values[2][:2], 90.5)
    detail(tmp_path, 1, values[3][:2], 90.4)
    steps = [record for record in read(tmp_path) if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 1, 2]
    again = logical(values[2] + values[3])[0, 1:]
    assert steps[4]["tokens_per_expert"] == again.tolist()


def test_a_long_dump_is_read_in_pieces(tmp_path: Path) -> None:
    reader = SGLangReader(stat(tmp_path, counts(40)), "served", SourceRequest())
    assert 0 < len(reader.read(1).records) < 41
    assert 0 < reader.offset < reader.size


MAPPED = {"last_physical_to_logical_map": MAP}
PASS = {"forward_pass_id": 0, "rank": 0, "global_physical_count": MAP}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"other": 1}, "neither logical_count nor records"),
        ({"logical_count": [1, 2]}, "not a tensor of integers"),
        ({"logical_count": torch.zeros(2, 2, 2)}, "not a tensor of integers"),
        ({"logical_count": torch.zeros(2, 2, dtype=torch.int32)}, "with 3 dimensions"),
        ({"logical_count": torch.zeros(1, 0, 2, dtype=torch.int32)}, "0 layers"),
        ({"logical_count": torch.full((1, 1, 2), -1)}, "negative or too large"),
        ({"logical_count": torch.zeros(1, 5000, 9, dtype=torch.int8)}, "5,000 layers"),
        ({"records": [{}]}, "not a tensor of integers"),
        ({"records": [{}], **MAPPED}, "no forward_pass_id"),
        ({"records": [PASS | {"global_physical_count": MAP[:1]}], **MAPPED}, "not consistent"),
        ({"records": [PASS, PASS | {"rank": 1}], **MAPPED}, "records of 2 ranks in one file"),
        ({"records": [{}], "last_physical_to_logical_map": MAP - 1}, "negative or too large"),
        ({"records": [{}], "last_physical_to_logical_map": MAP + 8}, "more experts than slots"),
    ],
)
def test_foreign_content_is_refused(content: object, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    settle(path)
    with pytest.raises(Unreadable, match=why) as refused:
        read(path)
    assert str(refused.value).startswith(("x.pt: ", "5,000 routers"))


def test_dumps_of_two_modes_in_one_folder_are_refused(tmp_path: Path) -> None:
    stat(tmp_path, counts(2), 1.5)
    detail(tmp_path, 0, counts(2, PHYSICAL), 2.5)
    with pytest.raises(Unreadable, match="two modes"):
        read(tmp_path)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "MOST_FILES", 1)
    stat(tmp_path, counts(1), 1.5)
    stat(tmp_path, counts(1), 2.5)
    with pytest.raises(Unreadable, match="move older ones away"):
        read(tmp_path)
