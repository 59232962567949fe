"""What is exported gives the same logits in transformers, and comes back bit for bit.

``test_model_types.py`` has every model type; here are the writer and its command.
"""

import json
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_model import CharTokenizer, LanguageModel, UsageError, read_checkpoint
from moe_model.config import YarnScaling
from moe_model.huggingface.read import load_pretrained
from moe_model.huggingface.write import save_pretrained
from moe_model.training.checkpoint import LATEST, Checkpoints
from tests.forked import ForkServer
from tests.model.conftest import make_biased, write_checkpoint
from tests.model.published import assert_same, command, our_logits, tensors, their_logits


def write_run(model: LanguageModel, run: Path, vocabulary: str = "ab") -> Path:
    Checkpoints(run).save(LATEST, 3, lambda folder: write_checkpoint(folder, model, vocabulary))
    return run


def test_a_run_becomes_a_folder_that_auto_classes_load(tmp_path: Path, ids_BS: Tensor) -> None:
    text = "".join(map(chr, range(33, 33 + 94))) + "\n\t "
    model, folder = make_biased(), tmp_path / "published"
    assert command("export", write_run(model, tmp_path / "run", text), folder) == 0
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "as of any new file"
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert theirs.dtype == torch.float32
    assert_same(theirs(ids_BS, use_cache=False).logits.detach(), our_logits(model, ids_BS))
    ids = AutoTokenizer.from_pretrained(folder)("a b\n").input_ids
    assert ids == CharTokenizer(text).encode("a b\n").tolist()

    # Ids 0 and 1, which are the ends of a text there by default, are characters here.
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (None, None)
    assert theirs.config.num_key_value_heads == model.config.num_attention_heads
    written = theirs.generate(ids_BS[:1], max_new_tokens=5, do_sample=False)
    assert written.shape[1] == ids_BS.shape[1] + 5


def test_export_and_import_give_the_same_bits(tmp_path: Path) -> None:
    yarn = YarnScaling(factor=3.0, original_max_position_embeddings=9, mscale_all_dim=0.3)
    model = make_biased(
        q_lora_rank=20, n_group=4, topk_group=2, rope_scaling=yarn, num_nextn_predict_layers=2
    )
    assert command("export", write_run(model, tmp_path / "run"), tmp_path / "published") == 0
    assert command("import", tmp_path / "published", tmp_path / "back") == 0
    again = read_checkpoint(tmp_path / "back")
    assert again.config == model.config
    assert again.tokenizer.encode("ba").tolist() == [1, 0]
    kept = again.load_model().state_dict()
    assert kept.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(kept[name], tensor), name


def test_shards_are_as_small_as_requested(tmp_path: Path, ids_BS: Tensor, monkeypatch: Any) -> None:
    monkeypatch.setattr("moe_model.huggingface.write.SHARD_BYTES", 30_000)
    model, folder = make_biased(), tmp_path / "published"
    save_pretrained(model, None, folder)
    shards = [load_file(path) for path in folder.glob("*.safetensors")]
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    assert 20_000 < min(sorted(sizes)[1:]) <= max(sizes) <= 30_000, "all but the last are full"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors(folder).keys()
    assert index["metadata"]["total_size"] == sum(sizes)
    assert_same(their_logits(folder, ids_BS), our_logits(model, ids_BS))
    back, _ = load_pretrained(folder)
    assert torch.equal(our_logits(back, ids_BS), our_logits(model, ids_BS))


def test_in_bf16_the_router_and_its_bias_stay_fp32(tmp_path: Path, ids_BS: Tensor) -> None:
    model, folder = make_biased(), tmp_path / "published"
    assert command("export", write_run(model, tmp_path / "run"), folder, "--dtype", "bf16") == 0
    kept = tensors(folder)
    assert torch.equal(kept["model.layers.1.mlp.gate.weight"], model.routers[0].weight)
    assert kept["lm_head.weight"].dtype == torch.bfloat16
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == torch.bfloat16
    theirs_gate = theirs.model.layers[1].mlp.gate
    assert torch.equal(theirs_gate.e_score_correction_bias, model.routers[0].expert_bias)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" not in name:
                parameter.copy_(parameter.bfloat16())
    assert_same(their_logits(folder, ids_BS), our_logits(model, ids_BS))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scoring_func": "softmax"}, "scoring_func='softmax'"),
        ({"n_routed_experts": 1, "num_experts_per_tok": 1}, "n_routed_experts=1"),
    ],
)
def test_a_model_that_their_class_cannot_be_is_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{message}.*cannot be exported"):
        save_pretrained(make_biased(**fields), None, tmp_path / "published")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_after_an_error(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    run = write_run(make_biased(), tmp_path / "run")
    target = tmp_path / "deep" / "published"
    assert command("export", run, target) == 64
    assert "deep is not a folder: create it first" in capsys.readouterr().err
    (tmp_path / "deep").mkdir()

    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    for what in ("moe_model.store.save_file", "moe_model.store.os.fsync", "pathlib.Path.mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(what, full)
            assert command("export", run, target) == 1
        assert "No space left on device" in capsys.readouterr().err
        assert not list((tmp_path / "deep").iterdir())

    target.mkdir()
    assert command("export", run, target) == 64
    assert "published exists: choose another name" in capsys.readouterr().err
    assert not list(target.iterdir())


def test_leftovers_of_a_killed_export_are_replaced(tmp_path: Path) -> None:
    run = write_run(make_biased(), tmp_path / "run")
    (tmp_path / ".published.partial").mkdir()
    (tmp_path / ".published.partial" / "half").write_text("of a file")
    assert command("export", run, tmp_path / "published") == 0
    assert not (tmp_path / "published" / "half").exists()
    assert not (tmp_path / ".published.partial").exists()


def test_ctrl_c_leaves_nothing(tmp_path: Path, fork_server: ForkServer) -> None:
    run, out = write_run(make_biased(), tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    never_on_disk = (
        "import os, sys, time, moe_model.store as store\n"
        "from moe_model import command; from moe_model.huggingface.__main__ import app\n"
        f"store.force_to_disk = lambda _: (os.mkdir({str(tmp_path / 'now')!r}), time.sleep(60))\n"
        "sys.exit(command.run_command(app, sys.argv[1:]))\n"
    )
    program = fork_server.start("-c", never_on_disk, "export", str(run), str(out / "p"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "now").exists():
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(out.glob(".*.partial/config.json"))
    program.send_signal(signal.SIGINT)
    _, narration = program.communicate()
    assert program.returncode == 130
    assert "Traceback" not in narration
    assert not list(out.iterdir())
