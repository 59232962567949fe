"""A folder that is damaged, contradicts itself or means harm is refused, and nothing is left."""

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moe_model import UsageError
from moe_model.huggingface.read import load_pretrained
from tests.model.published import LLAMA3, change_config, change_tensors, command, of_type

EXPERT = "model.layers.1.mlp.experts.15.up_proj.weight"
Published = Callable[..., Path]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    def write(model_type: str = "deepseek_v3", shards: str = "1GB") -> Path:
        folder = tmp_path_factory.getbasetemp() / f"{model_type}-{shards}"
        if not folder.exists():
            of_type(model_type).save_pretrained(folder, max_shard_size=shards)
        return folder

    return write


@pytest.fixture(name="folder")
def _folder(published: Published, tmp_path: Path) -> Path:
    return shutil.copytree(published(), tmp_path / "theirs")


@pytest.fixture(name="sharded")
def _sharded(published: Published, tmp_path: Path) -> Path:
    return shutil.copytree(published(shards="50KB"), tmp_path / "theirs")


@pytest.fixture(autouse=True)
def _nothing_else_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"theirs", "elsewhere"}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    def words(folder: Path, into: Path = tmp_path / "ours") -> str:
        assert command("import", folder, into) == 64
        return capsys.readouterr().err

    return words


def put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(EXPERT), f"{EXPERT} (24, 32) is missing"),
        (put(EXPERT, torch.zeros(24, 31)), "(24, 31), but config.json requires (24, 32)"),
        (put("model.layers.7.mlp.bias", torch.zeros(3)), "mlp.bias (3,) and 0 more tensors"),
        (put(EXPERT + "_scale_inv", torch.zeros(1, 1)), f"{EXPERT}_scale_inv (1, 1) and 0 more"),
        (put(EXPERT, torch.zeros(24, 32, dtype=torch.int8)), f"{EXPERT} is torch.int8: only fp32"),
        (lambda t: t[EXPERT].fill_(float("nan")), f"{EXPERT} contains NaN or infinity"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight (97, 32) is missing"),
    ],
    ids=["missing", "misshapen", "extra", "scale of nothing", "int8", "NaN", "head"],
)
def test_a_wrong_tensor_is_named(change: Any, message: str, folder: Path, refused: Refused) -> None:
    change_tensors(folder, change)
    assert message in refused(folder)


V2, V3, GLM = "deepseek_v2", "deepseek_v3", "glm4_moe_lite"
YARN = {"rope_type": "yarn", "factor": 4}
FIELDS: list[tuple[str, dict[str, Any], str]] = [
    (V3, {"architectures": ["KimiLinearForCausalLM"]},
     "only DeepseekV3ForCausalLM, DeepseekV2ForCausalLM and Glm4MoeLiteForCausalLM can be"),
    (V3, {"architectures": None, "model_type": "llama"}, "model_type='llama'"),
    (V3, {"attention_bias": True}, "layers.0.self_attn.kv_a_proj_with_mqa.bias (24,) is missing"),
    (V3, {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
    (V3, {"moe_layer_freq": 2}, "moe_layer_freq=2"),
    (V3, {"scoring_func": "softmax"}, "scoring_func='softmax'"),
    (V3, {"topk_method": "greedy"}, "topk_method='greedy'"),
    (V3, {"num_key_value_heads": 1}, "num_key_value_heads=1 is not supported: only 2 is"),
    (V3, {"head_dim": 16}, "head_dim=16 is not supported: only 8 is"),
    (V3, {"num_mtp_layers": 3}, "num_mtp_layers=3"),
    (V3, {"rope_interleave": False}, "rope_interleave=False is not supported: only True is"),
    (V3, {"hidden_size": ...}, "hidden_size is missing: it must be a whole number"),
    (V3, {"q_lora_rank": ...}, "q_lora_rank is missing"),
    (V3, {"hidden_size": "32"}, "hidden_size='32': it must be a whole number"),
    (V3, {"norm_topk_prob": 1}, "norm_topk_prob=1: it must be true or false"),
    (V3, {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be positive"),
    (V3, {"num_hidden_layers": 2}, "model.layers.2.enorm.weight (32,) is missing"),
    (V3, {"num_hidden_layers": 2, "num_nextn_predict_layers": 0},
     "model.layers.2.input_layernorm.weight (32,) and"),
    (V3, {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
    (V3, {"num_nextn_predict_layers": 10**9}, "num_nextn_predict_layers=1000000000"),
    (V3, {"n_routed_experts": 10**9}, "model.layers.1.mlp.gate.weight has shape (16, 32), but"),
    (V3, {"hidden_size": 2**30}, "model.embed_tokens.weight has shape (97, 32), but"),
    (V3, {"hidden_size": 2**31 - 2, "intermediate_size": 2**31 - 1}, "too large for any memory"),
    (V3, {"hidden_size": 10**30}, "it must be a whole number below 2147483648"),
    (V3, {"rope_scaling": [4]}, "rope_scaling=[4] is neither an object nor null"),
    (V3, {"rope_theta": 9.0}, "rope_theta=10000.0 contradicts rope_theta=9.0"),
    (V3, {"rope_parameters": {"rope_type": "linear", "factor": 8.0}},
     "rope_type='linear' is not supported: only default, yarn and llama3 are"),
    (V3, {"rope_scaling": {"type": "yarn", "factor": 4}},
     "rope_parameters.rope_type='default' contradicts rope_type='yarn'"),
    (V3, {"rope_parameters": YARN | {"type": "linear"}},
     "rope_type='yarn' elsewhere"),
    (V3, {"rope_parameters": {"rope_type": "yarn"}}, "rope factor=None is not a number of 1"),
    (V3, {"rope_parameters": YARN | {"factor": "4"}}, "factor='4': it must be"),
    (V3, {"rope_parameters": YARN | {"truncate": False}}, "rope truncate=False is not supported"),
    (V3, {"rope_parameters": YARN | {"attention_factor": 0.5}}, "rope attention_factor=0.5"),
    (V3, {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1}},
     "high_freq_factor is missing: it must be a number"),
    (V3, {"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}},
     "rope_scaling.low_freq_factor=4.0 is not below high_freq_factor=4.0"),
    (V3, {"other": "x" * 2**20}, "it has more than 1048576 characters"),
    (V3, {"other": float("inf")}, "Out of range float values are not JSON compliant"),
    (V2, {"norm_topk_prob": True}, "norm_topk_prob=True is not supported"),
    (V2, {"topk_method": "noaux_tc"}, "only 'greedy' and 'group_limited_greedy' are"),
    (V2, {"topk_method": "group_limited_greedy"}, "n_group=None: it must be a whole"),
    (V2, {"scoring_func": "sigmoid"}, "scoring_func='sigmoid' is not supported"),
    (V2, {"mlp_bias": True}, "mlp_bias=True is not supported"),
    (GLM, {"mlp_layer_types": ["dense", "dense", "sparse"]}, "layers.1.mlp.gate_proj.weight (48,"),
    (GLM, {"scoring_func": "softmax"}, "scoring_func='softmax' is not supported"),
    *(
        (V3, {"quantization_config": quantization}, message)
        for quantization, message in (
            ({"quant_method": "gptq", "bits": 4}, "quant_method='fp8'"),
            ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt='e4m3'"),
            ({"quant_method": "fp8", "weight_block_size": [128]}, "two numbers of rows and"),
            ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "two numbers"),
            ({"quant_method": "fp8", "weight_block_size": [128, 128, 0]}, "two numbers"),
            ({"quant_method": "fp8", "weight_block_size": None}, "two numbers"),
            (["fp8"], "quant_method='fp8'"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    FIELDS,
    ids=lambda value: json.dumps(value, default=str)[:50] if isinstance(value, dict) else None,
)
def test_a_wrong_field_is_named(
    model_type: str, fields: dict[str, Any], message: str, published: Published, tmp_path: Path
) -> None:
    folder = shutil.copytree(published(model_type), tmp_path / "theirs")
    change_config(folder, **fields)
    with pytest.raises(UsageError, match=re.escape(message)):
        load_pretrained(folder)


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
def test_a_damaged_config_is_refused(
    content: bytes | None, message: str, folder: Path, refused: Refused
) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    assert message in refused(folder)


def test_a_source_must_be_a_folder(folder: Path, tmp_path: Path, refused: Refused) -> None:
    assert "config.json is not a folder" in refused(folder / "config.json")
    assert "elsewhere is not a folder" in refused(tmp_path / "elsewhere")


def test_a_pickle_is_not_read(folder: Path, refused: Refused) -> None:
    (folder / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(folder.parent / "exploded"),)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "neither model.safetensors nor model.safetensors.index.json (pickles" in refused(folder)


def test_damaged_shards_are_refused(sharded: Path, refused: Refused) -> None:
    first, shard = sorted(sharded.glob("*.safetensors"))[:2]
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
        assert f"{shard} is truncated or not a safetensors file" in refused(sharded)
    shard.write_bytes(first.read_bytes())
    assert f"{shard} contains " in refused(sharded)
    shard.unlink()
    assert f"{shard.name!r} is missing" in refused(sharded)
    os.mkfifo(shard)
    assert f"{shard.name!r} is missing or not a file" in refused(sharded)


NOT_NAMES = ("a\0b", "loop", "long" * 100)


@pytest.mark.parametrize(
    "name",
    [
        *("../elsewhere/x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "link"),
        *NOT_NAMES,
    ],
)
def test_no_index_leads_elsewhere(name: str, sharded: Path, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "elsewhere").mkdir()
    (sharded / "sub").mkdir()
    for target in (tmp_path / "elsewhere", sharded / "sub"):
        save_file({"lm_head.weight": torch.zeros(97, 32)}, target / "x.safetensors")
    (sharded / "link").symlink_to(tmp_path / "elsewhere" / "x.safetensors")
    (sharded / "loop").symlink_to("loop")
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    problem = "is missing or not a file" if name in NOT_NAMES else "is outside the folder"
    assert f"{name!r} {problem}" in refused(sharded)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"[" * 10**5],
)
def test_a_damaged_index_is_refused(content: bytes, sharded: Path, refused: Refused) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(content)
    assert "is not an index of safetensors files" in refused(sharded)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_not_followed(
    name: str, folder: Path, tmp_path: Path, refused: Refused
) -> None:
    """The file that it leads to would be copied to where the user may publish it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / name).write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    assert f"{name!r} is outside the folder" in refused(folder)


def test_only_the_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "elsewhere/snapshots/abc", tmp_path / "elsewhere/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    model, tokenizer = load_pretrained(snapshot)
    assert model.config.hidden_size == 32
    assert tokenizer is None
    elsewhere = snapshot.parent.rename(tmp_path / "elsewhere/others") / "abc"
    with pytest.raises(UsageError, match="is outside the folder"):
        load_pretrained(elsewhere)


def test_an_existing_target_is_not_replaced(folder: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "elsewhere").symlink_to("nowhere")
    for existing in (tmp_path / "elsewhere", folder):
        assert "exists: choose another name" in refused(folder, existing)
