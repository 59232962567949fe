"""Files of ``torch.save`` read without torch: equal to torch, and never executed."""

import contextlib
import io
import os
import pickle
import struct
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from microscope_tui.sources import Unreadable, plain_pickle, torch_file
from microscope_tui.sources.dumps import Bytes, opened
from microscope_tui.sources.torch_file import Tensor
from tests.sources.sound import saved


def read(path: Path, content: bytes | None = None) -> Any:
    if content is not None:
        path.write_bytes(content)
    with opened(path) as data:

        def plain(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.shape, value.numbers(data)
            if isinstance(value, dict):
                return {key: plain(inner) for key, inner in value.items()}
            if isinstance(value, list) and any(isinstance(one, plain_pickle.Span) for one in value):
                runs = [data.read(one.start, len(one), "a run") for one in value]
                return [one for run in runs for one in pickle.loads(b"(" + run + b"l.")]
            return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value

        return plain(torch_file.load(data))


def interpreted(content: bytes) -> Any:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        span = plain_pickle.Span(0, len(content))
        data = Bytes(file.fileno(), "a")
        return plain_pickle.load(data, span, bool, lambda _: None, lambda _: None)


def repacked(
    content: bytes, method: int = zipfile.ZIP_STORED, only: str = "", **members: bytes
) -> bytes:
    """The same archive with other members, one of them only, or another compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            key = name.rpartition("/")[2].replace(".", "_")
            if key == only or not only:
                new.writestr(name, members.get(key, old.read(name)))
    return buffer.getvalue()


DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 0, 3), (2, 3, 4)], ids=str)
def test_a_tensor_of_integers_and_any_shape_reads_as_torch_saved_it(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensor = (torch.randn(shape) * 50).to(dtype)
    found, numbers = read(tmp_path / "a.pt", saved(tensor))
    assert found == shape
    assert numbers == tensor.flatten().tolist()


@pytest.mark.parametrize("dtype", [torch.bool, torch.half, torch.bfloat16, torch.float64], ids=str)
def test_other_numbers_are_not_taken_for_integers(dtype: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved([torch.ones(3).to(dtype), torch.ones(3).int()]))
    with opened(tmp_path / "a.pt") as data:
        assert [tensor.is_integer for tensor in torch_file.load(data)] == [False, True]


def test_one_index_reads_one_row(tmp_path: Path) -> None:
    tensor = torch.arange(30).view(5, 2, 3)[1:]
    (tmp_path / "a.pt").write_bytes(saved(tensor))
    with opened(tmp_path / "a.pt") as data:
        found = torch_file.load(data)
        assert found.numbers(data, 2) == tensor[2].flatten().tolist()


def test_plain_containers_read_as_they_were_saved(tmp_path: Path) -> None:
    shared = torch.ones(2)
    value = {
        "none": None,
        "numbers": [True, False, 0, -1, 255, 70_000, 2**40, -(2**70), 0.5],
        "text": ["a", "a", "ü" * 32],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "ordered": OrderedDict(a=1, b=[]),
        "many": list(range(2500)),
        7: {"t": shared, "again": shared},
    }
    found = read(tmp_path / "a.pt", saved(value))
    value[7] = dict.fromkeys(("t", "again"), ((2,), [1.0, 1.0]))
    assert found == value


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_that_would_run_code_is_refused_by_name_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    content = saved({"records": Malicious(f"touch {mark}")})
    with pytest.raises(Unreadable, match=r"names \w+\.system, .* nothing was executed") as refused:
        read(tmp_path / "evil.pt", content)
    assert str(refused.value).startswith("evil.pt: ")
    assert "\n" not in str(refused.value)
    assert not mark.exists()
    torch.load(io.BytesIO(content), weights_only=False)
    assert mark.exists()  # torch itself executes it


@pytest.mark.parametrize(
    "value",
    [torch.nn.Linear(1, 1), {1, 2}, Path("x"), torch.complex(torch.ones(1), torch.ones(1))],
    ids=["module", "set", "path", "complex"],
)
def test_all_but_tensors_and_plain_containers_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="neither a tensor nor a plain container"):
        read(tmp_path / "a.pt", saved(value))


def rebuilt(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """An archive whose tensor has any geometry over a storage of six integers."""
    content = saved(torch.arange(6, dtype=torch.int32).view(2, 3))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read("archive/data.pkl")
    old = b"K\x00K\x02K\x03\x86q\x06K\x03K\x01\x86q\x07"
    assert old in pickled
    new = b"".join(pickle.dumps(part, 2)[2:-1] for part in (offset, shape, strides))
    return repacked(content, data_pkl=pickled.replace(old, new))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (1, (2, 3), (3, 1)),
        (0, (7,), (1,)),
        (-1, (2,), (1,)),
        (0, (2, 3), (-1, 1)),
        (0, (2, 3), (1,)),
        (0, (1,) * 40, (1,) * 40),
        (0, (2**60,), (1,)),
    ],
)
def test_geometry_outside_the_storage_is_refused(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], tmp_path: Path
) -> None:
    with pytest.raises(Unreadable, match="a tensor"):
        read(tmp_path / "a.pt", rebuilt(offset, shape, strides))


def pickled(data: bytes) -> bytes:
    return repacked(saved([1]), data_pkl=b"\x80\x02" + data)


def changed(marker: bytes, after: int, place: int, new: bytes) -> bytes:
    """A file whose bytes at ``place`` behind a marker (the first one from ``after`` on) are new."""
    content = bytearray(saved([1]))
    at = content.index(marker, after) + place
    content[at : at + len(new)] = new
    return bytes(content)


DIRECTORY = b"PK\1\2"
SECOND = changed(b"", 0, 0, b"").index(DIRECTORY) + 4
REFUSED = {
    "strides": (saved(torch.ones(2, 3).T), "a strided view; save its contiguous"),
    "compressed": (repacked(saved(torch.zeros(99)), zipfile.ZIP_DEFLATED), "compressed"),
    "encrypted": (changed(DIRECTORY, 0, 8, b"\1\x08"), "encrypted"),
    "member outside": (changed(DIRECTORY, 0, 42, struct.pack("<L", 1 << 20)), "lie outside"),
    "members overlap": (changed(DIRECTORY, SECOND, 42, struct.pack("<L", 5)), "overlap"),
    "no pickle": (repacked(saved([1]), only="version"), "without a pickle of torch"),
    "torn": (saved([1])[:-30], "end of the zip file is missing"),
    "short storage": (repacked(saved(torch.zeros(3)), **{"0": b"\0" * 11}), "fewer bytes than"),
    "hostile name": (pickled(b"cevil\x1b[2J\nname\n."), "names evil"),
    "tower of tuples": (pickled(b")" + b"\x85" * 100_000 + b"."), "containers inside each other"),
    "list in itself": (pickled(b"]q\0h\0a."), "containers inside each other"),
    "deep key": (pickled(b"})" + b"\x85" * 100_000 + b"K\x01s."), "a tuple as a key"),
    "marks": (pickled(b"(" * 100_000 + b"."), "the pickle is damaged"),
    "operations": (saved([*map(str, range(4000))]), "more than 4,000 operations; dump more often"),
    "operation": (pickled(b"i"), "the operation b'i', which is not needed"),
    "call": (pickled(b"]]R."), "calls something that is not a function"),
    "persistent id": (pickled(b"]Q."), "not a storage of a tensor"),
    "state of a list": (pickled(b"])b."), "the pickle is damaged"),
    "two values": (pickled(b"]]."), "the pickle is damaged"),
    "odd items": (pickled(b"}(K\1u."), "the pickle is damaged"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_no_dump_has_is_refused_in_one_line(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "operations":
        monkeypatch.setattr(plain_pickle, "MOST_OPCODES", 4000)
    content, expected = REFUSED[why]
    with pytest.raises(Unreadable, match=expected) as refused:
        read(tmp_path / "a.pt", content)
    assert str(refused.value).isprintable()


def test_a_list_that_is_in_many_places_is_looked_at_once() -> None:
    laughs = b"\x80\x02(]q\x00" + b"".join(
        b"]q" + bytes([n + 1]) + b"(h" + bytes([n]) + b"h" + bytes([n]) + b"e" for n in range(30)
    )
    assert len(interpreted(laughs + b"t.")) == 31


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_as_a_pickle_are_refused_or_read(content: bytes) -> None:
    with contextlib.suppress(plain_pickle.Refused):
        interpreted(content)
