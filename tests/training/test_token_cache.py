"""Token ids on disk: what comes back is what was written, or it is made again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_model import TOKENIZER, CharTokenizer, PretrainedTokenizer, character_files
from moe_model.training import (
    DamagedError,
    cache_key,
    dtype_name,
    kept_tokens,
    read_tokens,
    token_cache,
    write_tokens,
)

KEY = "0" * 64
VOCABULARY = 50_000
IDS = torch.tensor([0, 49_999, 40_000, 7, 7]).to(torch.uint16)
STARTS = torch.tensor([0, 2, 3])


def same(found: tuple[Tensor, Tensor]) -> bool:
    ids, starts = found
    return ids.tolist() == IDS.tolist() and torch.equal(starts, STARTS)


def never() -> tuple[Tensor, Tensor]:
    raise AssertionError("encoded again")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache that holds ``IDS``."""
    write_tokens(tmp_path / "tokens", KEY, VOCABULARY, IDS, STARTS)
    return tmp_path / "tokens"


def test_what_is_kept_comes_back_without_encoding(folder: Path) -> None:
    ids, starts = kept_tokens(folder, KEY, VOCABULARY, never)
    assert same((ids, starts))
    assert ids.dtype == torch.uint16
    assert sorted(path.suffix for path in folder.iterdir()) == [".ids", ".json"]
    assert (folder / f"{KEY}.ids").stat().st_size == 2 * len(IDS)


def test_what_is_not_there_is_encoded_once(tmp_path: Path) -> None:
    calls = []

    def encode() -> tuple[Tensor, Tensor]:
        calls.append(1)
        return IDS, STARTS

    for _ in range(2):
        assert same(kept_tokens(tmp_path / "new" / "tokens", KEY, VOCABULARY, encode))
    assert calls == [1]


@pytest.mark.parametrize(
    ("vocabulary", "name"), [(65, "uint16"), (65_536, "uint16"), (65_537, "int32")]
)
def test_ids_are_as_narrow_as_the_vocabulary_allows(
    tmp_path: Path, vocabulary: int, name: str
) -> None:
    assert dtype_name(vocabulary) == name
    ids = torch.tensor([0, vocabulary - 1]).to(token_cache.DTYPES[name])
    write_tokens(tmp_path, KEY, vocabulary, ids, torch.tensor([0]))
    assert read_tokens(tmp_path, KEY, vocabulary)[0].tolist() == [0, vocabulary - 1]


def cut_short(ids: Path, _: Path) -> None:
    os.truncate(ids, 4)


def cut_to_nothing(ids: Path, _: Path) -> None:
    os.truncate(ids, 0)


def grown(ids: Path, _: Path) -> None:
    ids.write_bytes(ids.read_bytes() + b"\0\0")


def one_bit_flipped(ids: Path, _: Path) -> None:
    content = bytearray(ids.read_bytes())
    content[6] ^= 1
    ids.write_bytes(content)


def not_json(_: Path, description: Path) -> None:
    description.write_bytes(description.read_bytes()[:-5])


def nested(_: Path, description: Path) -> None:
    description.write_text("[" * 100_000)


def saying(**changes: Any) -> Callable[[Path, Path], None]:
    def change(_: Path, description: Path) -> None:
        description.write_text(json.dumps(json.loads(description.read_text()) | changes))

    return change


DAMAGE = {
    "cut short": cut_short,
    "cut to nothing": cut_to_nothing,
    "grown": grown,
    "one bit flipped": one_bit_flipped,
    "not JSON": not_json,
    "nested": nested,
    "another key": saying(key="1" * 64),
    "another format": saying(format="tokens"),
    "another type": saying(dtype="int32"),
    "another digest": saying(sha256="0" * 64),
    "fewer tokens": saying(tokens=4),
    "no tokens": saying(tokens=None),
    "tokens that are true": saying(tokens=True),
    "no documents": saying(starts=[]),
    "documents out of order": saying(starts=[0, 3, 2]),
    "documents twice": saying(starts=[0, 2, 2]),
    "documents from 1 on": saying(starts=[1, 2, 3]),
    "documents beyond the end": saying(starts=[0, 2, 5]),
    "documents that are no numbers": saying(starts=[0, "2", 3]),
    "documents that are halves": saying(starts=[0, 1.5, 3]),
    "documents that are huge": saying(starts=[0, 2, 10**30]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_noticed_and_mended(
    folder: Path, damage: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder / f"{KEY}.ids", folder / f"{KEY}.json")
    with pytest.raises(DamagedError):
        read_tokens(folder, KEY, VOCABULARY)
    assert same(kept_tokens(folder, KEY, VOCABULARY, lambda: (IDS, STARTS)))
    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged" in line
    assert same(kept_tokens(folder, KEY, VOCABULARY, never))


def test_ids_outside_the_vocabulary_are_not_believed_even_with_the_right_digest(
    folder: Path,
) -> None:
    content = IDS.numpy().tobytes()
    assert json.loads((folder / f"{KEY}.json").read_text())["sha256"] == (
        hashlib.sha256(content).hexdigest()
    )
    with pytest.raises(DamagedError, match="an id of 49999 is not below the vocabulary 49999"):
        read_tokens(folder, KEY, 49_999)


@pytest.mark.parametrize("gone", ["ids", "json"])
def test_half_of_an_entry_is_none(folder: Path, gone: str) -> None:
    (folder / f"{KEY}.{gone}").unlink()
    with pytest.raises(FileNotFoundError):
        read_tokens(folder, KEY, VOCABULARY)
    assert same(kept_tokens(folder, KEY, VOCABULARY, lambda: (IDS, STARTS)))


def test_a_folder_that_cannot_be_written_costs_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "tokens"
    assert same(kept_tokens(folder, KEY, VOCABULARY, lambda: (IDS, STARTS)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{folder} cannot store token ids (Not a directory)")


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert same(kept_tokens(tmp_path, KEY, VOCABULARY, lambda: (IDS, STARTS)))
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path: Path) -> None:
    old, young = tmp_path / ".old.partial", tmp_path / ".young.partial"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    write_tokens(tmp_path, KEY, VOCABULARY, IDS, STARTS)
    assert not old.exists()
    assert young.exists()


def test_ranks_that_start_together_all_get_the_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    together = threading.Barrier(8)
    found = []

    def in_step(_: int) -> None:
        together.wait(timeout=10)  # every rank has written before any renames

    def rank() -> None:
        found.append(same(kept_tokens(tmp_path, KEY, VOCABULARY, lambda: (IDS, STARTS))))

    monkeypatch.setattr(os, "fsync", in_step)
    ranks = [threading.Thread(target=rank) for _ in range(8)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert found == [True] * 8
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{KEY}.ids", f"{KEY}.json"]


def test_ids_may_be_larger_than_the_memory(tmp_path: Path) -> None:
    """Of a file with a hole; ``torch.from_file`` is refused this much under Linux' defaults."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    path = tmp_path / "hole"
    path.touch()
    try:
        os.truncate(path, 4 * memory)
    except OSError as error:
        pytest.skip(f"no such file on this disk: {error}")
    ids = token_cache._map(path, torch.uint16, 2 * memory)
    assert ids[-3:].tolist() == [0, 0, 0]


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
