"""Checkpoints: whole or not there, and a damaged one says so."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moe_model import CharTokenizer, LanguageModel, store
from moe_model.store import CheckpointError, read_checkpoint, write_description, write_tensors
from moe_model.training import checkpoint as checkpoint_module
from moe_model.training.checkpoint import (
    BEST,
    LATEST,
    PREVIOUS,
    Checkpoints,
    load_shards,
    optimizer_state,
)
from moe_model.training.options import Options
from moe_model.training.step import make_optimizer
from tests.model.conftest import make_config
from tests.training.story import edit, flip_a_bit

Save = Callable[..., Path]


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(make_config(vocab_size=4, num_hidden_layers=2, n_routed_experts=4))


@pytest.fixture
def save(model: LanguageModel, tmp_path: Path) -> Save:
    checkpoints = Checkpoints(tmp_path / "r")
    optimizer = make_optimizer(model, Options(lr=1e-3))
    model(torch.zeros(1, 4, dtype=torch.int64)).logits_BSV.square().mean().backward()
    optimizer.step()

    def run(step: int, name: str = LATEST) -> Path:
        def write(folder: Path) -> None:
            write_state(folder, step, model, optimizer)

        checkpoints.save(name, step, write)
        return checkpoints.folder / name

    return run


def write_state(folder: Path, step: int, model: LanguageModel, optimizer: Any) -> None:
    write_tensors(folder / "model.safetensors", model.state_dict())
    write_tensors(folder / "training.safetensors", optimizer_state(model, optimizer))
    (folder / "judgement.msgpack").write_bytes(b"judged")
    tokenizer = CharTokenizer("abcd").to_dict()
    write_description(folder, model.config, step, tokenizer=tokenizer, validation_loss=None)


def test_what_is_read_is_what_was_saved(save: Save, model: LanguageModel) -> None:
    model.routers[0].expert_bias.copy_(torch.tensor([0.125, -0.5, 0.25, 0.0]))
    checkpoint = read_checkpoint(save(3))
    assert (checkpoint.step, checkpoint.tokenizer.vocabulary) == (3, "abcd")
    loaded = checkpoint.load_model()
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_state_of_the_optimizer_is_restored(save: Save, model: LanguageModel) -> None:
    folder = read_checkpoint(save(3)).folder
    state = load_file(folder / "training.safetensors")
    names = {name for name, _ in model.named_parameters()}
    assert set(state) == {
        f"optimizer.{n}.{k}" for n in names for k in ("step", "exp_avg", "exp_avg_sq")
    }
    other = make_optimizer(model, Options(lr=1e-3))
    load_shards(folder, optimizer_state(model, other))
    restored = optimizer_state(model, other)
    assert all(torch.equal(restored[name], value) for name, value in state.items())
    del state["optimizer.norm.weight.exp_avg"]
    write_tensors(folder / "training.safetensors", state)
    with pytest.raises(CheckpointError, match=r"nothing for optimizer\.norm\.weight\.exp_avg"):
        load_shards(folder, optimizer_state(model, other))


def test_only_steps_with_a_name_are_kept(save: Save, tmp_path: Path) -> None:
    """What a killed process left is removed too, a folder that is not ours is not."""
    for left in (".step-00000007.partial", ".step-00000006.removed", "step-keep"):
        (tmp_path / "r" / left).mkdir()
    for step, name in [(1, BEST), (1, LATEST), (2, LATEST), (3, LATEST)]:
        save(step, name)
    found = sorted(path.name for path in (tmp_path / "r").iterdir())
    steps = ["step-00000001", "step-00000002", "step-00000003"]
    assert found == ["best", "latest", "previous", *steps, "step-keep"]
    assert read_checkpoint(tmp_path / "r" / "best").step == 1
    assert read_checkpoint(tmp_path / "r" / checkpoint_module.PREVIOUS).step == 2
    assert read_checkpoint(tmp_path / "r").step == 3


@pytest.mark.parametrize(("keep", "kept"), [("1", [3]), ("2", [2, 3]), ("all", [1, 2, 3])])
def test_the_newest_saved_checkpoints_are_kept(keep: str, kept: list[int], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step, name in [(1, LATEST), (2, LATEST), (2, BEST), (3, BEST), (3, LATEST)]:
        checkpoints.save(name, step, lambda folder: (folder / "weights").touch())
    found = [link.resolve().name for link in sorted(tmp_path.glob("kept-*"))]
    assert found == [f"step-{step:08d}" for step in kept]
    assert all((link / "weights").exists() for link in tmp_path.glob("kept-*"))


def test_previous_makes_room_unless_the_run_starts_from_it(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path)
    for step in (1, 2):
        first.save(LATEST, step, lambda folder: (folder / "weights").touch())
    previous, latest = (tmp_path / name for name in (PREVIOUS, LATEST))
    Checkpoints(tmp_path, previous.resolve()).remove_previous()
    assert previous.exists()
    Checkpoints(tmp_path, latest.resolve()).remove_previous()
    assert not previous.is_symlink()
    assert latest.exists()


def test_a_checkpoint_of_another_run_does_not_become_previous(save: Save, tmp_path: Path) -> None:
    fork = Checkpoints(tmp_path / "fork", save(4).resolve())
    fork.save(LATEST, 6, lambda folder: (folder / "weights").touch())
    assert sorted(path.name for path in fork.folder.iterdir()) == ["latest", "step-00000006"]


def test_a_step_of_a_former_future_is_not_taken_for_the_one_saved_now(
    save: Save, model: LanguageModel, tmp_path: Path
) -> None:
    """A run resumed from step 1 finds the best of step 2, which another optimizer made."""
    before = save(2, BEST).resolve()
    with torch.no_grad():
        model.norm.weight += 1
    now = Checkpoints(tmp_path / "r")
    now.save(
        LATEST,
        2,
        lambda folder: write_state(folder, 2, model, make_optimizer(model, Options(lr=1e-3))),
    )
    latest = read_checkpoint(tmp_path / "r")
    assert latest.folder != before
    assert torch.equal(latest.load_model().norm.weight, model.norm.weight)
    assert read_checkpoint(tmp_path / "r" / "best").folder == before


@pytest.mark.parametrize("fails_at", range(1, 18))
def test_failing_at_any_moment_keeps_a_loadable_latest(
    fails_at: int, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that touches the disk fails once; what was there before must still load."""
    save(1)
    calls = 0

    def failing(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise OSError("no space left on device")
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in [
            (sys.modules[__name__], "write_tensors"),
            (checkpoint_module, "force_to_disk"),
            (store, "force_to_disk"),
            (Path, "rename"),
            (Path, "symlink_to"),
            (Path, "write_text"),
            (Path, "write_bytes"),
        ]:
            patch.setattr(owner, name, failing(getattr(owner, name)))
        try:
            save(2)
        except OSError:
            failed = True
        else:
            failed = False
    assert failed == (calls >= fails_at)
    assert read_checkpoint(tmp_path / "r").step in (1, 2)
    for folder in (tmp_path / "r").glob("step-*"):
        assert read_checkpoint(folder), "a folder with this name is complete"
    save(2)
    assert read_checkpoint(tmp_path / "r").step == 2


def cut_short(folder: Path) -> None:
    content = (folder / "training.safetensors").read_bytes()
    (folder / "training.safetensors").write_bytes(content[:100])


FILE = {"bytes": 1, "sha256": ""}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip_a_bit(f / "model.safetensors"), "model.safetensors is damaged"),
        (cut_short, "training.safetensors is damaged .100 bytes"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read .No such file"),
        (lambda f: (f / "checkpoint.json").unlink(), "has no checkpoint.json"),
        (lambda f: (f / "checkpoint.json").write_text("{"), "not a description of a checkpoint"),
        (lambda f: (f / "checkpoint.json").write_text("[]"), "lacks format="),
        (lambda f: edit(f, "format_version", 9), "format_version=9, but only 1 is supported"),
        (lambda f: edit(f, "files", {}), "does not list model.safetensors"),
        (
            lambda f: edit(f, "files", dict.fromkeys(("model.safetensors", "../secret"), FILE)),
            "not a file name inside the folder",
        ),
        (lambda f: edit(f, "model", {"hidden_size": 3}), "unknown or missing in a model config"),
        (lambda f: edit(f, "tokenizer", {"kind": "words"}), "kind='words' is unknown"),
        (lambda f: edit(f, "model/hidden_size", 24), r"does not fit its own checkpoint\.json"),
    ],
)
def test_a_damaged_checkpoint_says_what_is_wrong(damage: Any, message: str, save: Save) -> None:
    folder = save(1).resolve()
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)
