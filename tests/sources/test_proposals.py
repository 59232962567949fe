"""Unknown keys: the right proposal for layouts of public code, and a wrong one is never used."""

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from microscope_tui import sources
from microscope_tui.sources import proposals
from microscope_tui.sources.keys import Target
from microscope_tui.sources.reader import RecordReader
from microscope_tui.sources.text_rows import JsonlReader
from tests.sources.layouts import LAYOUTS, OTHERS, Layout, write
from tests.sources.reading import counts_of, drained

KNOWN_MISSES = {"add-scalars": "the expert is only in the name of a folder"}
FOUND = [layout for layout in LAYOUTS if layout.name not in KNOWN_MISSES]


def readers(path: Path, request: sources.SourceRequest | None = None) -> list[RecordReader]:
    runs = sources.Search(path, request or sources.SourceRequest()).runs()
    foreign = [run for run in runs if isinstance(run, sources.ForeignRun)]
    return [run.form.open(run.file, run.run, run.name, run.request) for run in foreign]


def assert_recognised(path: Path, layout: Layout) -> None:
    """Every key gets its quantity, layer and expert, and the mapped log has the true numbers."""
    (reader,) = readers(path)
    by_itself, proposed = drained(reader), reader.proposed
    assert proposed is not None
    key, number = next(iter(layout.keys.items()))
    quantity = "tokens_per_expert" if number == "counts" else "share"
    keys = sources.Keys((), proposed.confirmed)
    for layer in layout.layers:
        for expert in range(layout.experts):
            wanted = Target(quantity, layer if "{l" in key else None, expert)
            assert keys[key.format(l=layer, e=expert)] == wanted, proposed
    is_known = not {"config", "tokens", "selected"}.isdisjoint(layout.keys.values())
    (reader,) = readers(path, proposed)
    records = drained(reader)
    assert records[0]["model"]["top_k"] in ((layout.k,) if is_known else (layout.k, None))
    assert counts_of(records) == layout.truth()
    assert not by_itself or counts_of(by_itself) == layout.truth()


def assert_not_used_by_itself(path: Path) -> None:
    """No proposal, or one that the user must accept."""
    assert not [records for reader in readers(path) for records in drained(reader)]


@pytest.mark.parametrize("layout", FOUND, ids=lambda layout: layout.name)
def test_a_layout_of_public_code_is_recognised(layout: Layout, tmp_path: Path) -> None:
    assert_recognised(write(tmp_path, layout), layout)


@pytest.mark.parametrize("layout", OTHERS, ids=lambda layout: layout.name)
def test_other_shares_or_indices_are_not_used_by_themselves(layout: Layout, tmp_path: Path) -> None:
    assert_not_used_by_itself(write(tmp_path, layout))


def _logged(path: Path, *rows: dict[str, Any]) -> Path:
    lines = (json.dumps({"step": step, **row}) for step, row in enumerate(rows, 1))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _matrix(key: str, layers: int, experts: int, **more: float) -> list[dict[str, float]]:
    """Ten steps of counts that are even within 1 %, or all the same number."""
    cells = [(layer, e) for layer in range(layers) for e in range(experts)]
    return [
        {key.format(l=layer, e=e): 1000 + (layer + e + step) % 3 for layer, e in cells} | more
        for step in range(10)
    ]


def _both(*logs: list[dict[str, float]]) -> list[dict[str, float]]:
    return [one | other for one, other in zip(*logs, strict=True)]


@pytest.mark.parametrize(
    "key",
    [
        "moe/tokens/{l}/{e}",
        "moe/layer_{l}/expert_{e}_tokens_capacity",
        "moe/layer_1{l}e15/expert_{e}_load",
        "moe/expert_{e}_load",
        "moe/layer_{l}/expert_{e}_x",
    ],
)
@pytest.mark.parametrize("more", [{}, {"": 1.0}, {"tokens_per_step": 5e-324}, {"moe/x/0/9": 1e308}])
def test_ambiguous_numbers_are_proposed_at_most(tmp_path: Path, key: str, more: Any) -> None:
    key = key.replace("e15", "0" * 15)
    rows = _matrix(key, 32, 8, **more)
    if "capacity" in key:
        rows = [dict.fromkeys(row, 64.0) | more for row in rows]
    assert_not_used_by_itself(_logged(tmp_path / "log.jsonl", *rows))


def test_two_steps_or_two_matrices_are_proposed_at_most(tmp_path: Path) -> None:
    rows = _matrix("moe/layer_{l}/expert_{e}_load", 2, 4)
    others = _matrix("moe/layer_{l}/expert_{e}_tokens", 2, 4)
    for logged in (rows[:2], _both(rows, others)):
        assert_not_used_by_itself(_logged(tmp_path / "log.jsonl", *logged))


def test_infinite_and_missing_loads_are_no_reason_to_fail(tmp_path: Path) -> None:
    rows = _matrix("moe/layer_{l}/expert_{e}_load", 2, 4)
    rows[3] |= {"moe/layer_0/expert_1_load": math.inf, "moe/layer_0/expert_2_load": -math.inf}
    assert_not_used_by_itself(_logged(tmp_path / "log.jsonl", *rows))


def test_another_log_under_the_same_name_is_looked_at_again(tmp_path: Path) -> None:
    path = _logged(tmp_path / "log.jsonl", *_matrix("moe/layer_{l}/expert_{e}_load", 2, 4))
    (reader,) = readers(path)
    assert "unconfirmed" in drained(reader)[0]["source"]
    for key, unconfirmed in (("router/tokens_per_expert/{l}/{e}", False), ("x {l} {e}", None)):
        path.unlink()
        _logged(path, *_matrix(key, 3, 4))
        records = drained(reader)
        if unconfirmed is None:
            assert not records
            assert "Looks like: x N M" in reader.missing
        else:
            assert "unconfirmed" not in records[0]["source"]


def test_keys_confirmed_for_one_run_leave_the_others_of_the_folder_alone(tmp_path: Path) -> None:
    one = _logged(tmp_path / "log.jsonl", *_matrix("load {l} {e}", 2, 4))
    (reader,) = readers(one)
    assert not drained(reader)
    for key in ("router/tokens_per_expert/{l}/{e}", "moe/layer_{l}/expert_{e}_load"):
        other = _logged(tmp_path / "train.jsonl", *_matrix(key, 3, 4))
        alone, (with_confirmed,) = drained(readers(other)[0]), readers(other, reader.proposed)
        assert drained(with_confirmed) == alone
        assert not with_confirmed.missing


def test_two_keys_that_a_map_takes_for_one_number_are_named(tmp_path: Path) -> None:
    rows = _both(_matrix("enc {l} {e}", 2, 4), _matrix("dec {l} {e}", 2, 4))
    maps = sources.rules_of([r"tokens_per_expert=(enc|dec) (?P<layer>\d+) (?P<expert>\d+)"])
    (reader,) = readers(_logged(tmp_path / "log.jsonl", *rows), sources.SourceRequest(rules=maps))
    drained(reader)
    assert "--map takes enc 0 0 and dec 0 0 for the same number" in reader.missing


def test_a_proposal_shows_between_which_values_its_numbers_are(tmp_path: Path) -> None:
    for number, shown in ((0.25, ".25"), (3.0, "3")):
        rows = [dict.fromkeys(row, number) for row in _matrix("x {l} {e}", 2, 4)]
        (reader,) = readers(_logged(tmp_path / "log.jsonl", *rows))
        drained(reader)
        assert f"values {shown} to {shown}:" in reader.missing


def test_a_survey_reads_no_more_than_the_beginning(tmp_path: Path) -> None:
    row = {f"x {number:04} {'y' * 90}": 0.5 for number in range(1_000)}
    reader = JsonlReader(_logged(tmp_path / "log.jsonl", *[row] * 40), sources.Keys(()))
    with mock.patch.object(proposals, "SURVEYED_BYTES", 1 << 20):
        assert 0 < len(proposals.survey(reader).steps) < 20
