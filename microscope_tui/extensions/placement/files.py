"""The placement files of serving engines, written and read.

All of them list slots: the expert of every slot, those of rank 0 first. They differ in how layers
are numbered. Read from the parsers of SGLang (``eplb/expert_location.py``), vllm-ascend
(``eplb/core/eplb_utils.py``) and TensorRT-LLM (``MoeLoadBalancerConfig``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import msgspec

from microscope_tui.runlog import read_at, safe_text
from microscope_tui.watch.cluster import Placement, double_copies

MOST_BYTES = 8 << 20
"""A longer file is refused; 128 layers of 1,024 slots take 4 MB in the longest form."""
_TABLE = "initial_global_assignments"
_HERE = "MoE layers of the run"
FORMS: Mapping[str, str] = {
    "sglang": "--init-expert-location, with --ep-num-redundant-experts for copies",
    "tensorrt-llm": "moe_config.load_balancer",
    "ascend": "additional_config.eplb_config.expert_map_path",
}
"""The option of the engine that takes the file."""


class BadFile(ValueError):
    """An engine would not take this, or it does not fit the run; the reason is one line."""


_Row = list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]]


class _Device(msgspec.Struct):
    device_expert: _Row


class _Layer(msgspec.Struct):
    device_list: list[_Device]
    device_count: int = 0


class _File(msgspec.Struct):
    """The keys of all forms."""

    physical_to_logical_map: list[_Row] = []
    layer_list: list[_Layer] = []
    initial_global_assignments: dict[int, _Row] = {}
    num_slots: int = 0


def write_form(
    form: str, placements: Sequence[Placement], layers: Sequence[int], *, hidden_layers: int | None
) -> str:
    """The text of a placement file.

    Args:
        form: One of ``FORMS``.
        placements: One per MoE layer.
        layers: Depths of these layers in the model, from 0.
        hidden_layers: Layers of the model, dense ones included; ``None`` if unknown, which
            ``sglang`` refuses.

    Raises:
        BadFile: the engine could not read it.
    """
    rows = [list(chain(*placement)) for placement in placements]
    of = dict(zip(layers, rows, strict=True))
    if len(of) < len(rows):
        raise BadFile(f"{form}: two routers are in the same layer of the model, of {[*layers]}")
    experts, slots = 1 + max(rows[0]), len(rows[0])
    if any(len(row) != slots or 1 + max(row) != experts for row in rows):
        raise BadFile(f"{form}: not all layers have {experts:,} experts in {slots:,} slots")
    if form == "tensorrt-llm":
        _hidden(form, layers, hidden_layers)
        lines = (f"  {layer}: {row}\n" for layer, row in of.items())
        head = f"num_slots: {slots}\nlayer_updates_per_iter: 0\n{_TABLE}:\n"
        return head + "".join(lines)
    content: Any
    if form == "sglang":
        dense = [slot % experts for slot in range(slots)]
        every = range(_hidden(form, layers, hidden_layers))
        content = {"physical_to_logical_map": [of.get(layer, dense) for layer in every]}
    else:
        found = [_ascend(at, placement) for at, placement in enumerate(placements)]
        content = {"moe_layer_count": len(found), "layer_list": found}
    return json.dumps(content) + "\n"


def _hidden(form: str, layers: Sequence[int], hidden_layers: int | None) -> int:
    """The layers of the model; refuses numbers of MoE layers: depths are needed."""
    number = len(layers)
    least = max(layers) + 1
    if [*layers] == [*range(number)] and hidden_layers is not None and hidden_layers > number:
        raise BadFile(
            f"{form} needs the depths of layers, and these count MoE layers from 0: {number:,} "
            f"of {hidden_layers:,}"
        )
    if form == "sglang" and (hidden_layers is None or hidden_layers < least):
        raise BadFile(
            "sglang wants a row for every layer of the model, dense ones too: give "
            f"--hidden-layers, its num_hidden_layers (at least {least})"
        )
    return hidden_layers or least


def _ascend(at: int, placement: Placement) -> dict[str, Any]:
    if double_copies(placement):
        raise BadFile(
            f"ascend: MoE layer {at} has two copies of an expert on one rank; vllm-ascend knows "
            "only one of them and takes wrong slots for others: choose another --replicas"
        )
    held = enumerate(map(list, placement))
    devices = [{"device_id": rank, "device_expert": experts} for rank, experts in held]
    return {"layer_id": at, "device_count": len(devices), "device_list": devices}


def read_form(
    path: Path, layers: Sequence[int], experts: Sequence[int], ranks: int, hidden_layers: int | None
) -> list[Placement]:
    """The placement of every MoE layer in a file of any form; see ``write_form``.

    Copies of an expert on one rank are kept, and keys that are not about slots ignored.

    Args:
        path: A file in JSON or YAML.
        layers: Depths of the MoE layers in the model, from 0.
        experts: Of each of them.
        ranks: Must divide the slots of a layer.
        hidden_layers: Layers of the model; without it, the last one is an MoE layer.

    Raises:
        BadFile: it cannot be read, or does not fit; the message has the first difference.
    """
    try:
        data = read_at(path, 0, MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise BadFile(f"longer than {MOST_BYTES:,} bytes; is it a placement?")
        if data.lstrip()[:1] in (b"{", b"["):
            file = msgspec.json.decode(data, type=_File)
        else:
            file = msgspec.convert(_yaml(data.decode()), _File, strict=False)
        rows = _rows(file, layers, ranks, max(hidden_layers or 0, max(layers) + 1))
        slots = len(rows[0])
        if slots % ranks:
            raise BadFile(f"{slots:,} slots do not divide by {ranks:,} ranks")
        for layer, row, number in zip(layers, rows, experts, strict=True):
            _same(f"slots of layer {layer}", len(row), f"of layer {layers[0]}", slots)
            if (most := max(row, default=0)) >= number:
                at = f"layer {layer}, slot {row.index(most)}"
                raise BadFile(f"{at}: expert {most:,}, but there are {number:,}, from 0")
            if missing := set(range(number)) - set(row):
                raise BadFile(f"layer {layer}: expert {min(missing)} has no slot")
    except OSError as error:
        raise BadFile(f"{safe_text(path, 200)}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # of msgspec, or the text is not UTF-8
        raise BadFile(f"{safe_text(path.name, 60)}: {safe_text(error, 240)}") from None
    each = slots // ranks
    return [[row[at : at + each] for at in range(0, slots, each)] for row in rows]


def _rows(file: _File, layers: Sequence[int], ranks: int, depth: int) -> list[_Row]:
    if rows := file.physical_to_logical_map:
        _same("rows", len(rows), "layers of the model, dense ones too (--hidden-layers)", depth)
        return [rows[layer] for layer in layers]
    if file.layer_list:
        _same("layer_list", len(file.layer_list), _HERE, len(layers))
        return [_of_devices(at, one, ranks) for at, one in enumerate(file.layer_list)]
    if not file.initial_global_assignments:
        raise BadFile(f"no placement in a form of {', '.join(FORMS)}")
    return _of_table(file, layers)


def _of_devices(at: int, layer: _Layer, ranks: int) -> _Row:
    held = [len(device.device_expert) for device in layer.device_list]
    _same(f"device_count of layer_list[{at}]", layer.device_count or ranks, "ranks", ranks)
    _same(f"device_list of layer_list[{at}]", len(held), "ranks", ranks)
    _same(f"experts of a device of layer_list[{at}]", min(held), "of another", max(held))
    return [expert for device in layer.device_list for expert in device.device_expert]


def _of_table(file: _File, numbers: Sequence[int]) -> list[_Row]:
    """The rows of these layers of the model."""
    table = file.initial_global_assignments
    if other := set(table) ^ set(numbers):
        wrong = "has no experts in the run" if min(other) in table else "is missing"
        raise BadFile(f"layer {min(other)} {wrong}; this form counts all layers from 0")
    rows = [table[number] for number in numbers]
    _same("num_slots", file.num_slots, f"slots of layer {min(table)}", len(rows[0]))
    return rows


def _same(what: str, found: int, where: str, expected: int) -> None:
    if found != expected:
        raise BadFile(f"{what}: {found:,}, but {where}: {expected:,}")


_FIELD = re.compile(r"(?m)^(\w+): +(\d{1,9}) *$", re.ASCII)
_ENTRY = re.compile(r"(?m)^( +)(\d{1,9}): +(\[[\d,\s]*\]) *$", re.ASCII)


def _yaml(text: str) -> dict[str, Any]:
    """What TensorRT-LLM's files have of YAML: numbers, and a table of lists in brackets."""
    text = re.sub(r"(?m)(?:^|(?<=[ \t]))#.*$|^---$|\r", "", text) + "\n"
    entries, fields = _ENTRY.findall(text), dict(_FIELD.findall(text))
    lists = {depth: msgspec.json.decode(row) for _, depth, row in entries}
    rest = _FIELD.sub("", _ENTRY.sub("", text)).split()
    if rest not in ([], [f"{_TABLE}:"]):
        raise BadFile(f"neither JSON nor YAML of TensorRT-LLM: {safe_text(' '.join(rest), 60)!r}")
    if len(lists) < len(entries) or len({indent for indent, _, _ in entries}) > 1:
        raise BadFile("a layer is there twice, or indented unlike the others")
    return {**fields, _TABLE: lists}
