"""Placement files: the exact text for every engine, and what is refused when one is read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given, strategies as st

from microscope_tui.extensions.placement.files import FORMS, BadFile, read_form, write_form
from microscope_tui.watch.cluster import Placement

PLACEMENTS = [[[0, 1, 2], [0, 3, 1]], [[3, 2, 1], [0, 3, 2]]]
LAYERS, EXPERTS, RANKS, HIDDEN = [1, 2], [4, 4], 2, 3
ROWS = "[0, 1, 2, 0, 3, 1], [3, 2, 1, 0, 3, 2]"
FIRST, SECOND = ROWS.replace("], [", "]|[").split("|")
DENSE = "[0, 1, 2, 3, 0, 1]"
"""What SGLang takes for a layer without experts: they in turn, as when no file is given."""
DEVICE = '{"device_id": %d, "device_expert": [%s]}'
LAYER = '{"layer_id": %d, "device_count": 2, "device_list": [%s, %s]}'
START = LAYER % (0, DEVICE % (0, "0, 1, 2"), DEVICE % (1, "0, 3, 1"))
LAST = LAYER % (1, DEVICE % (0, "3, 2, 1"), DEVICE % (1, "0, 3, 2"))
TEXTS = {
    "sglang": f'{{"physical_to_logical_map": [{DENSE}, {ROWS}]}}\n',
    "tensorrt-llm": "num_slots: 6\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n"
    f"  1: {FIRST}\n  2: {SECOND}\n",
    "ascend": f'{{"moe_layer_count": 2, "layer_list": [{START}, {LAST}]}}\n',
}


def read(folder: Path, text: str | bytes, layers: Sequence[int] = LAYERS, **other: Any) -> Any:
    path = folder / "placement"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_form(
        path, layers, **{"experts": EXPERTS, "ranks": RANKS, "hidden_layers": None, **other}
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_text_is_what_the_engine_reads_and_is_read_back(form: str, tmp_path: Path) -> None:
    text = write_form(form, PLACEMENTS, LAYERS, hidden_layers=HIDDEN)
    assert text == TEXTS[form]
    assert read(tmp_path, text, hidden_layers=HIDDEN) == PLACEMENTS


Case = tuple[int, int, list[int], list[Placement]]


@st.composite
def placed(draw: st.DrawFn) -> Case:
    """Experts, ranks, layers, and a placement of each; copies of an expert on different ranks."""
    ranks, layers = draw(st.integers(1, 4)), draw(st.sets(st.integers(1, 9), min_size=1))
    experts = ranks * draw(st.integers(1, 3))
    each = draw(st.integers(experts // ranks, experts))
    found: list[Placement] = []
    for _ in layers:
        order = draw(st.permutations(range(experts)))
        slots = [order[slot % experts] for slot in range(ranks * each)]
        found.append([slots[at : at + each] for at in range(0, len(slots), each)])
    return experts, ranks, sorted(layers), found


@given(placed(), st.integers(20, 200))
def test_what_is_written_is_read_back_also_from_another_writer_of_yaml(
    tmp_path_factory: pytest.TempPathFactory, case: Case, width: int
) -> None:
    experts, ranks, layers, placements = case
    folder = tmp_path_factory.getbasetemp()
    of = {"experts": [experts] * len(layers), "ranks": ranks, "hidden_layers": 12}
    for form in FORMS:
        text = write_form(form, placements, layers, hidden_layers=12)
        assert read(folder, text, layers, **of) == placements
        if form == "tensorrt-llm":
            text = yaml.dump(yaml.safe_load(text), default_flow_style=None, width=width)
            text = "---\n# a comment\n" + text.replace("\n", "  # more\n", 1)
            assert read(folder, text, layers, **of) == placements


def test_numbers_of_moe_layers_are_not_taken_for_depths() -> None:
    for form in ("sglang", "tensorrt-llm"):
        with pytest.raises(BadFile, match="count MoE layers from 0: 2 of 5"):
            write_form(form, PLACEMENTS, [0, 1], hidden_layers=5)


def test_other_peoples_files_may_double_a_copy_and_say_more(tmp_path: Path) -> None:
    doubled = f'{{"physical_to_logical_map": [{", ".join(["[0, 0, 1, 2, 3, 3]"] * 3)}]}}'
    assert read(tmp_path, doubled) == [[[0, 0, 1], [2, 3, 3]]] * 2
    more = json.loads(TEXTS["ascend"]) | {"comment": "of a tool"}
    assert read(tmp_path, json.dumps(more, indent=4)) == PLACEMENTS


@pytest.mark.parametrize(
    ("form", "old", "new", "reason"),
    [
        ("sglang", "[3, 2, 1,", "[3, 2, 1, 0,", "slots of layer 2: 7, but of layer 1: 6"),
        ("sglang", "0, 3, 2]", "0, 3, 4]", "layer 2, slot 5: expert 4, but there are 4, from 0"),
        ("sglang", "2, 0, 3, 1]", "2, 0, 2, 1]", "layer 1: expert 3 has no slot"),
        ("sglang", "3, 2, 1", "3, -2, 1", r"Expected `int` >= 0 - at `\$\.physical_to_logical_map"),
        ("sglang", f"{DENSE}, ", "", "rows: 2, but layers of the model, .*: 3"),
        ("sglang", "physical_to_logical_map", "else", "no placement in a form of sglang, "),
        ("sglang", "]]}", "]]} {}", "trailing characters"),
        ("tensorrt-llm", "  2:", "  3:", "layer 2 is missing; this form counts all layers from 0"),
        ("tensorrt-llm", "  2:", "  3: [1]\n  2:", "layer 3 has no experts in the run"),
        ("tensorrt-llm", "  2:", "  1:", "a layer is there twice"),
        ("tensorrt-llm", "  2:", "   2:", "or indented unlike the others"),
        ("tensorrt-llm", "[3,", "[&a 3,", "YAML of TensorRT-LLM: .* 2: .&a 3, 2, 1"),
        ("tensorrt-llm", "num_slots: 6\n", "", "num_slots: 0, but slots of layer 1: 6"),
        ("ascend", 'count": 2, "device', 'count": 4, "device', "device_count .*: 4, but ranks: 2"),
        ("ascend", f", {DEVICE % (1, '0, 3, 2')}", "", r"device_list of .*\[1\]: 1, but ranks: 2"),
        ("ascend", "[0, 3, 2]", "[0, 3]", r"experts of a device of .*\[1\]: 2, but of another: 3"),
        ("ascend", f", {LAST}", "", "layer_list: 1, but MoE layers of the run: 2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_first_difference(
    form: str, old: str, new: str, reason: str, tmp_path: Path
) -> None:
    assert old in TEXTS[form]
    with pytest.raises(BadFile, match=f"^placement: .*{reason}"):
        read(tmp_path, TEXTS[form].replace(old, new), hidden_layers=HIDDEN)
    with pytest.raises(BadFile, match=r"6 slots do not divide by 4 ranks|but ranks: 4"):
        read(tmp_path, TEXTS[form], ranks=4, hidden_layers=HIDDEN)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"num_slots: 6\nlayer_updates_per_iter: 2\n", "no placement in a form of sglang, "),
        (b"[" * 100_000, "Expected"),
        (b'{"a":' * 100_000, "recursion"),
        (b"{num_slots: 6}", "malformed"),
        (b"\x80\x02}q\x00.", "invalid start byte"),
        (b"a: \x1b[31m\n", "YAML of TensorRT-LLM: 'a: \ufffd.31m'"),
        (b"[" + b"[]," * (3 << 20), "longer than 8,388,608 bytes"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=reason) as caught:
        read(tmp_path, content)
    assert str(caught.value).isprintable()


def test_what_an_engine_cannot_take_is_not_written() -> None:
    for hidden in (None, 2):
        with pytest.raises(BadFile, match=r"--hidden-layers, .* \(at least 3\)"):
            write_form("sglang", PLACEMENTS, LAYERS, hidden_layers=hidden)
    with pytest.raises(BadFile, match="MoE layer 0 has two copies of an expert on one rank"):
        write_form("ascend", [[[0, 0], [1, 2]]], [0], hidden_layers=None)
    with pytest.raises(BadFile, match="not all layers have 2 experts in 2 slots"):
        write_form("sglang", [[[0], [1]], [[0, 1], [2, 0]]], [0, 1], hidden_layers=None)
    with pytest.raises(BadFile, match="two routers are in the same layer"):
        write_form("sglang", PLACEMENTS, [1, 1], hidden_layers=None)
