"""A run that starts from an imported or upcycled model, and the runs resumed from it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from moe_model import python_docs, read_checkpoint
from moe_model.training.options import RUN_DEFAULTS
from tests.model.llamas import random_llama, save as save_llama, story, upcycle
from tests.model.published import command
from tests.training.conftest import SHORT, GetTrained
from tests.training.story import Capsys, Log, ReadLog, Train, steps

PRESET_LR = RUN_DEFAULTS["tiny"]["lr"]
Imported = Callable[..., Path]


@pytest.fixture(scope="session")
def imported(trained: GetTrained, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model that was trained, published, and imported again; no test changes it."""

    @cache
    def make(*flags: str) -> Path:
        folder = tmp_path_factory.mktemp("imported")
        run = trained("--steps=30", "--lr=0.01", *flags)
        assert command("export", run.checkpoints, folder / "published") == 0
        assert command("import", folder / "published", folder / "imported") == 0
        return folder / "imported"

    return make


def weights(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    state = read_checkpoint(folder).load_model().state_dict()
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_multi_token_prediction_of_an_imported_model_is_trained(
    imported: Imported, train: Train, read_log: ReadLog
) -> None:
    """The depths are those of the checkpoint, in the run and in every run resumed from it."""
    start = imported("--mtp")
    assert train("--run=new", f"--resume={start}", "--steps=30", "--lr=0.003") == 0
    head, *rest = read_log("new")
    assert head["model"]["layer_names"] == ["L1", "L2", "mtp.0"]
    assert head["config"]["mtp_weight"] == 0.3
    losses = [record["losses"]["mtp"] for record in steps(rest)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert train("--run=new", "--resume=auto", "--steps=31") == 0
    assert "mtp" in steps(read_log("new"))[-1]["losses"]


def test_without_a_weight_multi_token_prediction_stays_as_it_is_until_it_gets_one(
    imported: Imported, train: Train, read_log: ReadLog, tmp_path: Path
) -> None:
    start, new = imported("--mtp"), tmp_path / "ck" / "new"
    assert train("--run=new", f"--resume={start}", "--lr=0.01", "--mtp-weight=0", "--steps=2") == 0
    head, *rest = read_log("new")
    assert head["model"]["layers"] == [1, 2]
    assert all("mtp" not in record["losses"] for record in steps(rest))
    assert same(weights(new, "mtp."), weights(start, "mtp."))
    assert not same(weights(new, "layers.1"), weights(start, "layers.1"))

    assert train("--run=new", "--resume=auto", "--steps=3") == 0  # inherited
    assert same(weights(new, "mtp."), weights(start, "mtp."))
    assert train("--run=new", "--resume=auto", "--steps=5", "--mtp-weight=0.3") == 0
    assert not same(weights(new, "mtp."), weights(start, "mtp."))
    assert train("--run=new", "--resume=auto", "--steps=6", "--mtp-weight=0") == 0
    rows = steps(read_log("new"))
    assert [len(row["tokens_per_expert"]) for row in rows] == [2, 2, 2, 3, 3, 2]


def test_a_layer_of_multi_token_prediction_can_be_collapsed_if_it_is_trained(train: Train) -> None:
    flags = ("--run=r", "--mtp", "--steps=1", "--force-collapse=3@1")
    assert train(*flags, "--mtp-weight=0") == 64
    assert train(*flags) == 0


@pytest.mark.parametrize(
    ("before", "flag", "depths"),
    [
        (["--mtp"], "--model.num_nextn_predict_layers=0", 0),
        (["--mtp"], "--model.num_nextn_predict_layers=2", 2),
        ([], "--mtp", 1),
        ([], "--lr=1e-9", 0),
    ],
)
def test_an_imported_model_keeps_its_weights_and_gets_the_depths_that_are_asked_for(
    before: list[str],
    flag: str,
    depths: int,
    imported: Imported,
    train: Train,
    read_log: ReadLog,
    tmp_path: Path,
    capsys: Capsys,
) -> None:
    """A checkpoint of the run knows what it is, and what was published with the model."""
    start = imported(*before)
    assert train("--run=new", f"--resume={start}", "--steps=1", "--lr=1e-9", flag) == 0
    assert "has weights only (an imported or upcycled model)" in capsys.readouterr().err
    found, earlier = read_checkpoint(tmp_path / "ck" / "new"), read_checkpoint(start)
    assert found.config.num_nextn_predict_layers == depths
    assert found.description["published"] == earlier.description["published"]
    assert found.description["published"]
    (first,) = steps(read_log("new"))
    assert first["step"] == 1
    assert ("mtp" in first["losses"]) == bool(depths)
    state, saved = (checkpoint.load_model().state_dict() for checkpoint in (found, earlier))
    for name in state.keys() & saved.keys():
        torch.testing.assert_close(state[name], saved[name], atol=1e-6, rtol=0, msg=name)
    assert train("--run=new", "--resume=auto", "--steps=2") == 0


def test_an_imported_model_decides_the_length_of_sequences_and_the_tokenizer(
    imported: Imported, arguments: Any, trainer: ModuleType, read_log: ReadLog, capsys: Capsys
) -> None:
    start = arguments("--run=new", f"--resume={imported()}", "--steps=1")
    command = [flag for flag in start if "max_position_embeddings" not in flag]
    assert trainer.run_command(trainer.app, [*command, "--tokenizer=bpe"]) == 64
    assert f"was trained with --tokenizer {imported()}: omit it" in capsys.readouterr().err
    assert trainer.run_command(trainer.app, command) == 0
    config = read_log("new")[0]["config"]
    assert (config["seq_len"], config["tokenizer"]) == (32, str(imported()))


def profile_and_rate(log: Log) -> tuple[str, float]:
    head = [record for record in log if record["kind"] == "run"][-1]
    assert head["profile"] == head["config"]["profile"]
    return head["profile"], head["config"]["lr"]


def test_a_new_run_is_pretrained_at_the_preset_s_rate(trained: GetTrained) -> None:
    assert profile_and_rate(trained(*SHORT).log) == ("pretrain", PRESET_LR)


def test_an_imported_model_is_fine_tuned_and_a_fork_keeps_profile_and_rate(
    imported: Imported, train: Train, read_log: ReadLog, tmp_path: Path, capsys: Capsys
) -> None:
    start, fork = f"--resume={imported()}", f"--resume={tmp_path / 'ck' / 'new'}"
    tuned = ("finetune", pytest.approx(PRESET_LR / 10))
    for run, flags, expected, announced in (
        ("new", [start, "--steps=1"], tuned, True),
        ("fork", [fork, "--steps=2"], tuned, False),
        ("other", [fork, "--steps=2", "--profile=pretrain", "--lr=0.5"], ("pretrain", 0.5), False),
        ("new", ["--resume=auto", "--steps=2"], tuned, False),
        ("given", [start, "--steps=1", "--lr=0.002"], ("finetune", 0.002), False),
    ):
        assert train(f"--run={run}", *flags) == 0
        assert profile_and_rate(read_log(run)) == expected, flags
        narration = capsys.readouterr().err
        assert ("0.0003, a tenth of the preset's" in narration) == announced, flags


def test_an_upcycled_model_is_pretrained_at_a_tenth_of_the_rate(
    train: Train, read_log: ReadLog, tmp_path: Path
) -> None:
    """A Llama turned into a Mixture of Experts, whose characters are those of the text."""
    (tmp_path / "story.txt").write_text(story(9000), "utf-8")
    save_llama(random_llama(vocab_size=len(set(python_docs("--text")))), tmp_path / "llama")
    assert upcycle(tmp_path / "llama", tmp_path / "upcycled", tmp_path / "story.txt") == 0
    config = read_checkpoint(tmp_path / "upcycled").config.to_dict()
    names = (
        "hidden_size", "num_hidden_layers", "intermediate_size", "moe_intermediate_size",
        "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
        "v_head_dim", "max_position_embeddings",
    )  # fmt: skip
    shape = [f"--model.{name}={config[name]}" for name in names]
    start = [f"--resume={tmp_path / 'upcycled'}", "--steps=1", "--seq-len=32", *shape]
    assert train("--run=new", *start) == 0
    assert profile_and_rate(read_log("new")) == ("pretrain", pytest.approx(PRESET_LR / 10))
    assert train("--run=tuned", *start, "--profile=finetune") == 0
    assert profile_and_rate(read_log("tuned")) == ("finetune", pytest.approx(PRESET_LR / 10))
