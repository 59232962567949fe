"""A run that starts from an imported or upcycled model, and the runs resumed from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_model import python_docs, read_checkpoint
from moe_model.training import RUN_DEFAULTS
from tests.model.llamas import random_llama, story, upcycle
from tests.model.llamas import save as save_llama
from tests.model.published import command
from tests.training.story import Log

Train = Callable[..., int]
ReadLog = Callable[[str], Log]
PRESET_LR = RUN_DEFAULTS["tiny"]["lr"]


@pytest.fixture
def imported(train: Train, tmp_path: Path) -> Callable[..., Path]:
    """A model that was trained a little, published, and imported again."""

    def make(*flags: str) -> Path:
        assert train("--run=first", "--steps=30", "--lr=0.01", *flags) == 0
        assert command("export", tmp_path / "ck" / "first", tmp_path / "published") == 0
        assert command("import", tmp_path / "published", tmp_path / "imported") == 0
        for folder in ("ck/first", "logs/first"):
            shutil.rmtree(tmp_path / folder)
        return tmp_path / "imported"

    return make


@pytest.fixture
def upcycled(tmp_path: Path) -> Path:
    """A Llama turned into a Mixture of Experts, whose characters are those of the text."""
    (tmp_path / "story.txt").write_text(story(9000), "utf-8")
    characters = len(set(python_docs("--text")))
    save_llama(random_llama(vocab_size=characters), tmp_path / "llama")
    assert upcycle(tmp_path / "llama", tmp_path / "upcycled", tmp_path / "story.txt") == 0
    return tmp_path / "upcycled"


def weights(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    state = read_checkpoint(folder).load_model().state_dict()
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}


def steps(log: Log) -> Log:
    return [record for record in log if record["kind"] == "step"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_multi_token_prediction_of_an_imported_model_is_trained(
    imported: Callable[..., Path], train: Train, read_log: ReadLog, tmp_path: Path
) -> None:
    """The depths are those of the checkpoint, in the run and in every run resumed from it."""
    start = imported("--mtp")
    assert train("--run=new", f"--resume={start}", "--steps=40", "--lr=0.003") == 0
    head, *rest = read_log("new")
    assert head["model"]["layer_names"] == ["L1", "L2", "mtp.0"]
    losses = [record["losses"]["mtp"] for record in steps(rest)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert train("--run=new", "--resume=auto", "--steps=42") == 0
    assert all("mtp" in record["losses"] for record in steps(read_log("new")))
    assert head["config"]["mtp_weight"] == 0.3


def test_without_a_weight_multi_token_prediction_stays_as_it_is_until_it_gets_one(
    imported: Callable[..., Path], train: Train, read_log: ReadLog, tmp_path: Path
) -> None:
    start = imported("--mtp")
    flags = (f"--resume={start}", "--lr=0.01", "--mtp-weight=0")
    assert train("--run=new", *flags, "--steps=5") == 0
    head, *rest = read_log("new")
    assert head["model"]["layers"] == [1, 2]
    assert {len(record["tokens_per_expert"]) for record in steps(rest)} == {2}
    assert all("mtp" not in record["losses"] for record in steps(rest))
    assert same(weights(tmp_path / "ck" / "new", "mtp."), weights(start, "mtp."))
    assert not same(weights(tmp_path / "ck" / "new", "layers.1"), weights(start, "layers.1"))

    assert train("--run=new", "--resume=auto", "--steps=8") == 0  # inherited
    assert same(weights(tmp_path / "ck" / "new", "mtp."), weights(start, "mtp."))
    assert train("--run=new", "--resume=auto", "--steps=11", "--mtp-weight=0.3") == 0
    assert not same(weights(tmp_path / "ck" / "new", "mtp."), weights(start, "mtp."))
    assert train("--run=new", "--resume=auto", "--steps=14", "--mtp-weight=0") == 0
    assert [len(row["tokens_per_expert"]) for row in steps(read_log("new"))] == [
        *[2] * 8, *[3] * 3, *[2] * 3,
    ]  # fmt: skip


def test_a_layer_that_is_not_trained_cannot_be_collapsed(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--run=r", "--mtp", "--steps=2", "--force-collapse=3@1")
    assert train(*flags, "--mtp-weight=0") == 64
    assert "layer 3 has no router: choose one of 1, 2." in capsys.readouterr().err
    assert train(*flags) == 0


@pytest.mark.parametrize(
    ("before", "flag", "depths"),
    [
        (["--mtp"], "--model.num_nextn_predict_layers=0", 0),
        (["--mtp"], "--model.num_nextn_predict_layers=2", 2),
        ([], "--mtp", 1),
        ([], "", 0),
    ],
)
def test_an_imported_model_gets_the_depths_that_are_asked_for(
    before: list[str],
    flag: str,
    depths: int,
    imported: Callable[..., Path],
    train: Train,
    read_log: ReadLog,
    tmp_path: Path,
) -> None:
    """What both models have is taken over, and a checkpoint of the run knows what it is."""
    start = imported(*before)
    flags = [flag] if flag else []
    assert train("--run=new", f"--resume={start}", "--steps=1", "--lr=1e-9", *flags) == 0
    found = read_checkpoint(tmp_path / "ck" / "new")
    assert found.config.num_nextn_predict_layers == depths
    assert ("mtp" in steps(read_log("new"))[0]["losses"]) == bool(depths)
    state, saved = (read_checkpoint(p).load_model().state_dict() for p in (found.folder, start))
    for name in state.keys() & saved.keys():
        torch.testing.assert_close(state[name], saved[name], atol=1e-6, rtol=0, msg=name)
    assert train("--run=new", "--resume=auto", "--steps=2") == 0


def test_a_run_does_not_change_its_depths(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=1") == 0
    assert train("--run=fork", f"--resume={tmp_path / 'ck' / 'r'}", "--mtp", "--steps=2") == 64
    assert "--model.num_nextn_predict_layers 1: the weights in" in capsys.readouterr().err


def told(log: Log) -> tuple[str, float]:
    """The profile and the learning rate in the last header of a log."""
    head = [record for record in log if record["kind"] == "run"][-1]
    assert head["profile"] == head["config"]["profile"]
    return head["profile"], head["config"]["lr"]


def test_an_imported_model_is_fine_tuned_and_a_fork_keeps_profile_and_rate(
    imported: Callable[..., Path],
    train: Train,
    read_log: ReadLog,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = imported()
    capsys.readouterr()
    assert train("--run=new", f"--resume={start}", "--steps=1") == 0
    assert told(read_log("new")) == ("finetune", pytest.approx(PRESET_LR / 10))
    assert "0.0003, a tenth of the preset's" in capsys.readouterr().err
    fork = f"--resume={tmp_path / 'ck' / 'new'}"
    assert train("--run=fork", fork, "--steps=2") == 0
    assert told(read_log("fork")) == ("finetune", pytest.approx(PRESET_LR / 10))
    assert train("--run=other", fork, "--steps=2", "--profile=pretrain", "--lr=0.5") == 0
    assert told(read_log("other")) == ("pretrain", 0.5)
    assert train("--run=new", "--resume=auto", "--steps=2") == 0
    assert told(read_log("new")) == ("finetune", pytest.approx(PRESET_LR / 10))
    assert "a tenth of" not in capsys.readouterr().err
    assert train("--run=given", f"--resume={start}", "--steps=1", "--lr=0.002") == 0
    assert told(read_log("given")) == ("finetune", 0.002)
    assert "a tenth of" not in capsys.readouterr().err


def test_an_upcycled_model_is_pretrained_at_a_tenth_of_the_rate(
    upcycled: Path, train: Train, read_log: ReadLog, capsys: pytest.CaptureFixture[str]
) -> None:
    start = [f"--resume={upcycled}", "--steps=1", "--seq-len=32"]
    shape = upcycled_shape(upcycled)
    assert train("--run=new", *start, *shape) == 0
    assert told(read_log("new")) == ("pretrain", pytest.approx(PRESET_LR / 10))
    assert "a tenth of the preset's" in capsys.readouterr().err
    assert train("--run=tuned", *start, *shape, "--profile=finetune") == 0
    assert told(read_log("tuned")) == ("finetune", pytest.approx(PRESET_LR / 10))


def upcycled_shape(folder: Path) -> list[str]:
    """The fields that every run of these tests is given, as the checkpoint has them."""
    config = read_checkpoint(folder).config.to_dict()
    names = (
        "hidden_size", "num_hidden_layers", "intermediate_size", "moe_intermediate_size",
        "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
        "v_head_dim", "max_position_embeddings",
    )  # fmt: skip
    return [f"--model.{name}={config[name]}" for name in names]


def test_a_new_run_is_pretrained_at_the_preset_s_rate(train: Train, read_log: ReadLog) -> None:
    assert train("--run=r", "--steps=1") == 0
    assert told(read_log("r")) == ("pretrain", PRESET_LR)


def test_a_description_that_makes_no_sense_is_an_error_and_no_traceback(
    imported: Callable[..., Path], train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    start = imported()
    (start / "checkpoint.json").write_text(
        '{"format": "moe-microscope checkpoint", "format_version": 1, "step": 0, "model": []}'
    )
    assert train("--run=new", f"--resume={start}", "--steps=1") == 1
    assert "is not a description of a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (["--model.num_experts_per_tok=1"], True),
        (["--model.num_experts_per_tok=1", "--model.no-norm_topk_prob"], False),
        ([], False),
    ],
)
def test_one_expert_with_normalised_weights_is_warned_of_because_its_router_learns_nothing(
    flags: list[str],
    warned: bool,
    train: Train,
    read_log: ReadLog,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train("--run=r", "--steps=2", "--seq-aux-weight=0", *flags) == 0
    said = capsys.readouterr().err
    assert ("the language loss does not train the router" in said) == warned
    norms = [norm for record in steps(read_log("r")) for norm in record["router"]["grad_norm"]]
    assert (max(norms) < 1e-8) == warned
