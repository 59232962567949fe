"""Placement files that we write, read by the engines' own parsers; what these import is stubbed."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from microscope_tui.extensions.placement.files import write_form
from tests.extensions.placement.test_files import HIDDEN, LAYERS, PLACEMENTS, RANKS

EXPERTS, SLOTS = 4, 6
DENSE = [0, 1, 2, 3, 0, 1]
FLAT = [[expert for held in placement for expert in held] for placement in PLACEMENTS]


def module(
    package: str, file: str, stubs: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """One module of an installed package, without the rest of it and its dependencies."""
    folder = Path(sys.prefix, "engines", package)  # see the Makefile
    if not folder.exists():
        pytest.skip(f"{folder} does not exist")
    for name, content in stubs.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    name = f"alone_{package}"
    spec = spec_from_file_location(name, folder / file)
    assert spec is not None
    assert spec.loader is not None
    loaded = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


def test_sglang_starts_with_the_map_that_we_write_and_with_no_other_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "map.json"
    moe = SimpleNamespace(
        init_expert_location=str(path), ep_num_redundant_experts=SLOTS - EXPERTS,
        ep_dispatch_algorithm=None, ep_join_mode=None, moe_a2a_backend="none",
    )  # fmt: skip
    parallel = SimpleNamespace(ep_size=RANKS, elastic_ep_initial_size=None, nnodes=1)
    context = {
        "get_device": lambda: SimpleNamespace(device="cpu"),
        "get_exec": lambda: SimpleNamespace(moe=moe),
        "get_parallel": lambda: parallel,
        "get_resources": SimpleNamespace,
    }
    of_model = SimpleNamespace(
        get_model_config_for_expert_location=lambda config: location.ModelConfigForExpertLocation(
            num_layers=HIDDEN, num_logical_experts=EXPERTS
        )
    )
    stubs = {
        "sglang.srt.runtime_context": context,
        "sglang.srt.model_loader": {"get_model_architecture": lambda config: (of_model, "")},
    }
    location = module("sglang", "srt/eplb/expert_location.py", stubs, monkeypatch)
    config = SimpleNamespace(hf_config=None)
    text = write_form("sglang", PLACEMENTS, LAYERS, hidden_layers=HIDDEN)
    path.write_text(text)
    found = location.compute_initial_expert_location_metadata(config, moe_ep_rank=0)
    assert found.physical_to_logical_map.tolist() == [DENSE, *FLAT]
    assert (found.num_layers, found.num_local_physical_experts) == (HIDDEN, SLOTS // RANKS)
    assert found.logical_to_all_physical(1, 0) == [0, 3]  # layer, expert: its slots
    path.write_text(json.dumps(json.loads(text) | {"layers": LAYERS}))
    with pytest.raises(TypeError, match="layers"):
        location.compute_initial_expert_location_metadata(config, moe_ep_rank=0)


def test_vllm_ascend_sends_tokens_to_slots_that_hold_their_expert_unless_a_rank_has_it_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = "vllm.model_executor.layers.fused_moe"
    unused = {"determine_expert_map": None}
    stubs = {"vllm.logger": {"logger": None}}
    stubs |= {f"{fused}.expert_map_manager": unused, f"{fused}.layer": unused}
    utils = module("vllm_ascend", "eplb/core/eplb_utils.py", stubs, monkeypatch)
    monkeypatch.setattr(torch.Tensor, "npu", lambda tensor: tensor, raising=False)
    path = tmp_path / "map.json"
    eplb = SimpleNamespace(expert_map_path=str(path), dynamic_eplb=False)

    def slots_of(layer: int, rank: int) -> list[int]:
        model = SimpleNamespace(num_experts=EXPERTS, ep_size=RANKS, ep_rank=rank)
        *_, slot_of_expert, redundant = utils.init_eplb_config(eplb, layer, model)
        assert redundant == SLOTS - EXPERTS
        return slot_of_expert.tolist()

    path.write_text(write_form("ascend", PLACEMENTS, LAYERS, hidden_layers=None))
    for at, placement in enumerate(PLACEMENTS):
        assert utils.expert_file_to_tensor(path, at)[0].tolist() == placement
        for rank in range(RANKS):
            assert [FLAT[at][slot] for slot in slots_of(at, rank)] == [*range(EXPERTS)]
    devices = [{"device_expert": [0, 0, 1]}, {"device_expert": [2, 3, 1]}]
    twice = {"moe_layer_count": 1, "layer_list": [{"device_list": devices}]}
    path.write_text(json.dumps(twice))
    assert [[0, 0, 1, 2, 3, 1][slot] for slot in slots_of(0, 0)] != [*range(EXPERTS)]
