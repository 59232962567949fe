"""A folder that is damaged, contradicts itself or means harm is refused, and nothing is left."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moe_model.huggingface import HuggingFaceError, load_pretrained
from tests.model.published import change_config, change_tensors, command, their_model

EXPERT = "model.layers.1.mlp.experts.15.up_proj.weight"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """A sound folder."""
    their_model().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture(name="sharded")
def _sharded(tmp_path: Path) -> Path:
    """A sound folder with several shards."""
    their_model().save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    return tmp_path / "theirs"


@pytest.fixture(autouse=True)
def _nothing_else_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"theirs", "elsewhere"}


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it refuses ``folder``."""
    assert command("import", folder, folder.parent / "ours") == 64
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(EXPERT), f"{EXPERT} (24, 32) is missing"),
        (
            lambda t: t.update({EXPERT: torch.zeros(24, 31)}),
            f"{EXPERT} has shape (24, 31), but config.json requires (24, 32)",
        ),
        (
            lambda t: t.update({"model.layers.7.mlp.bias": torch.zeros(3)}),
            "model.layers.7.mlp.bias (3,) and 0 more tensors have no place",
        ),
        (
            lambda t: t.update({EXPERT + "_scale_inv": torch.zeros(1, 1)}),
            f"{EXPERT}_scale_inv (1, 1) and 0 more",
        ),
        (
            lambda t: t.update({EXPERT: torch.zeros(24, 32, dtype=torch.int8)}),
            f"{EXPERT} is torch.int8: only fp32",
        ),
        (lambda t: t[EXPERT].fill_(float("nan")), f"{EXPERT} contains NaN or infinity"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight (97, 32) is missing"),
    ],
    ids=["missing", "misshapen", "extra", "scale of nothing", "int8", "NaN", "head"],
)
def test_a_wrong_tensor_is_named(
    change: Callable[[dict[str, Any]], object],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_tensors(folder, change)
    assert message in refused(folder, capsys)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architectures": ["KimiLinearForCausalLM"]},
            "only DeepseekV3ForCausalLM, DeepseekV2ForCausalLM and Glm4MoeLiteForCausalLM can be",
        ),
        ({"architectures": None, "model_type": "llama"}, "model_type='llama'"),
        ({"attention_bias": True}, "layers.0.self_attn.kv_a_proj_with_mqa.bias (24,) is missing"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"moe_layer_freq": 2}, "moe_layer_freq=2"),
        ({"scoring_func": "softmax"}, "scoring_func='softmax'"),
        ({"topk_method": "greedy"}, "topk_method='greedy'"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1 is not supported: only 2 is"),
        ({"head_dim": 16}, "head_dim=16 is not supported: only 8 is"),
        ({"num_mtp_layers": 3}, "num_mtp_layers=3"),
        ({"rope_interleave": "yes"}, "rope_interleave='yes': it must be true or false"),
        ({"rope_interleave": None}, "rope_interleave=None: it must be true or false"),
        ({"hidden_size": ...}, "hidden_size is missing: it must be a whole number"),
        ({"q_lora_rank": ...}, "q_lora_rank is missing"),
        ({"hidden_size": "32"}, "hidden_size='32': it must be a whole number"),
        ({"hidden_size": True}, "hidden_size=True: it must be a whole number"),
        ({"norm_topk_prob": 1}, "norm_topk_prob=1: it must be true or false"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan: it must be a number"),
        ({"n_group": 5}, "n_routed_experts=16 is not divisible by n_group=5"),
        ({"num_hidden_layers": 1}, "first_k_dense_replace=1 leaves no expert layer"),
        ({"num_hidden_layers": 2}, "model.layers.2.enorm.weight (32,) is missing"),
        (
            {"num_hidden_layers": 2, "num_nextn_predict_layers": 0},
            "model.layers.2.input_layernorm.weight (32,) and",
        ),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"num_nextn_predict_layers": 10**9}, "num_nextn_predict_layers=1000000000"),
        ({"n_routed_experts": 10**9}, "model.layers.1.mlp.gate.weight has shape (16, 32), but"),
        ({"hidden_size": 2**30}, "model.embed_tokens.weight has shape (97, 32), but"),
        ({"hidden_size": 2**31 - 2, "intermediate_size": 2**31 - 1}, "too large for any memory"),
        ({"hidden_size": 10**30}, "it must be a whole number below 2147483648"),
        ({"rope_scaling": [4]}, "rope_scaling=[4] is neither an object nor null"),
        ({"rope_theta": 9.0}, "rope_theta=10000.0 contradicts rope_theta=9.0"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 8.0}},
            "rope_type='linear' is not supported: only default, yarn and llama3 are",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4}},
            "rope_parameters.rope_type='default' contradicts rope_type='yarn'",
        ),
        (
            {"rope_parameters": {"type": "yarn", "rope_type": "linear", "factor": 4}},
            "rope_type='linear' contradicts rope_type='yarn'",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope factor=None is not a number of 1"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "factor='4': it must be"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4, "truncate": False}},
            "rope truncate=False is not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4, "attention_factor": 0.5}},
            "rope attention_factor=0.5",
        ),
    ],
    ids=lambda value: json.dumps(value, default=str) if isinstance(value, dict) else None,
)
def test_a_wrong_field_is_named(
    fields: dict[str, Any], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_config(folder, **fields)
    assert message in refused(folder, capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (None, "'config.json' is missing or not a file"),
    ],
)
def test_a_config_that_is_none_is_refused(
    content: bytes | None, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    assert message in refused(folder, capsys)


def test_a_source_that_is_no_folder_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "config.json is not a folder" in refused(folder / "config.json", capsys)
    assert "elsewhere is not a folder" in refused(tmp_path / "elsewhere", capsys)


def test_a_pickle_is_not_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    assert "has neither model.safetensors nor" in refused(folder, capsys)

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(folder.parent / "exploded"),)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "has pytorch_model.bin but no safetensors" in refused(folder, capsys)


def test_damaged_shards_are_refused(sharded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    huge = json.dumps({"x": {"dtype": "F32", "shape": [2**50, 2**9], "data_offsets": [0, 2**61]}})
    for damaged in (
        content[:-100],
        content[:5],
        b"",
        struct.pack("<Q", 2**62) + content[8:],
        struct.pack("<Q", len(huge)) + huge.encode(),
    ):
        shard.write_bytes(damaged)
        assert f"{shard} is truncated or not a safetensors file" in refused(sharded, capsys)
    shard.unlink()
    assert f"{shard.name!r} is missing" in refused(sharded, capsys)
    os.mkfifo(shard)
    assert f"{shard.name!r} is missing or not a file" in refused(sharded, capsys)


def test_a_tensor_in_two_shards_is_refused(
    sharded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    second.write_bytes(first.read_bytes())
    assert f"{second} contains " in refused(sharded, capsys)


NO_NAMES = ("a\0b", "loop", "long" * 100)


@pytest.mark.parametrize(
    "name",
    ["../elsewhere/x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "link", *NO_NAMES],
)
def test_an_index_leads_to_no_other_folder(
    name: str, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (sharded / "sub").mkdir()
    for target in (tmp_path / "elsewhere", sharded / "sub"):
        save_file({"lm_head.weight": torch.zeros(97, 32)}, target / "x.safetensors")
    (sharded / "link").symlink_to(tmp_path / "elsewhere" / "x.safetensors")
    path = sharded / "model.safetensors.index.json"
    (sharded / "loop").symlink_to("loop")
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    said = "is outside the folder" if name not in NO_NAMES else "is missing or not a file"
    assert f"{name!r} {said}" in refused(sharded, capsys)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"[" * 10**5],
)
def test_an_index_that_is_none_is_refused(
    content: bytes, sharded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(content)
    assert "is not an index of safetensors files" in refused(sharded, capsys)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_not_followed(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it leads to would be copied to where the user may publish it."""
    (tmp_path / "elsewhere").mkdir()
    if (folder / name).exists():
        (folder / name).rename(tmp_path / "elsewhere" / name)
    else:
        (tmp_path / "elsewhere" / name).write_text("{}")
    (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    assert f"{name!r} is outside the folder" in refused(folder, capsys)


def test_the_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "elsewhere/snapshots/abc", tmp_path / "elsewhere/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    model, tokenizer = load_pretrained(snapshot)
    assert model.config.hidden_size == 32
    assert tokenizer is None


def test_what_exists_is_not_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").symlink_to("nowhere")
    assert command("import", folder, tmp_path / "elsewhere") == 64
    assert command("import", folder, folder) == 64
    assert capsys.readouterr().err.count("exists: choose another name") == 2


def test_a_checkpoint_is_not_exported_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("export", tmp_path, tmp_path / "ours") == 64
    assert "has no checkpoint.json" in capsys.readouterr().err


def test_errors_of_the_library_are_of_one_class(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(HuggingFaceError, match="not a safetensors file"):
        load_pretrained(folder)
