"""Token ids on disk: what comes back is what was written, or it is made again."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moe_model import TOKENIZER, CharTokenizer, PretrainedTokenizer, character_files
from moe_model.training.corpus import cache_key, cached_tokens
from tests.training.story import Capsys

KEY = "0" * 64
IDS = torch.tensor([0, 49_999, 40_000, 7, 7]).to(torch.uint16)
STARTS = torch.tensor([0, 2, 3])


def same(found: tuple[Tensor, Tensor]) -> bool:
    ids, starts = found
    return ids.dtype == IDS.dtype and ids.tolist() == IDS.tolist() and torch.equal(starts, STARTS)


never = mock.Mock(side_effect=AssertionError("encoded again"))


def once() -> tuple[Tensor, Tensor]:
    return IDS, STARTS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    assert same(cached_tokens(tmp_path / "new" / "tokens", KEY, once))
    (path,) = (tmp_path / "new" / "tokens").iterdir()
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: os.truncate(file, file.stat().st_size - 1),
        lambda file: os.truncate(file, 0),
        lambda file: save_file({"ids": IDS}, file),
    ],
    ids=["cut short", "empty", "without starts"],
)
def test_damage_is_repaired(file: Path, damage: Callable[[Path], None], capsys: Capsys) -> None:
    damage(file)
    assert same(cached_tokens(file.parent, KEY, once))
    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged" in line
    assert same(cached_tokens(file.parent, KEY, never))


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path: Path, capsys: Capsys) -> None:
    folder = tmp_path / "tokens"
    folder.touch()
    assert same(cached_tokens(folder, KEY, once))
    assert f"{folder} cannot store token ids (" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=full))
    assert same(cached_tokens(tmp_path, KEY, once))
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_key_is_of_all_that_decides_the_ids() -> None:
    published = character_files("ab")
    others = [
        ("d", CharTokenizer("ab")),
        ("e", CharTokenizer("ab")),
        ("d", CharTokenizer("abc")),
        ("d", PretrainedTokenizer(published)),
        ("d", PretrainedTokenizer({TOKENIZER: published[TOKENIZER]})),
        ("d", PretrainedTokenizer(character_files("ba"))),
    ]
    keys = [cache_key(digest, tokenizer) for digest, tokenizer in others]
    assert len(set(keys)) == len(keys)
    assert keys == [cache_key(digest, tokenizer) for digest, tokenizer in others]
