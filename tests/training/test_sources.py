"""What --data names: files and folders as they lie on a disk, and one download from a local server.

The server counts what it is asked for; nothing here leaves this machine.
"""

import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from moe_model import UsageError, python_docs
from moe_model.training import corpus
from moe_model.training.corpus import (
    Document,
    load_documents,
    load_sources,
    make_tokenizer,
    user_cache,
)

PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


class Server(ThreadingHTTPServer):
    content = PLAY
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("NO_PROXY", "*")
        url = f"http://127.0.0.1:{server.server_port}/input.txt"
        monkeypatch.setattr(corpus, "SHAKESPEARE_URL", url)
        monkeypatch.setattr(corpus, "SHAKESPEARE_SHA256", hashlib.sha256(PLAY).hexdigest())
        yield server
        server.shutdown()
        thread.join()


def test_a_file_and_the_documentation_of_python_are_one_document_each(tmp_path: Path) -> None:
    path = write(tmp_path, {"one.txt": "héllo\nworld"}) / "one.txt"
    assert list(load_documents(str(path))) == [Document(str(path), "héllo\nworld")]
    assert list(load_documents("python-docs")) == [Document("python-docs", python_docs("--data"))]


def test_a_folder_is_files_by_relative_path_without_hidden_and_empty_ones(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.md", "a/b/c", "a.txt", "B", "a-b/x", "é"]
    folder = write(tmp_path / ".data", {name: f"in {name}" for name in names})
    write(folder, {".git/config": "x", "a/.hidden": "x", ".x": "x", "a/.b/c.txt": "x", "no": ""})
    os.mkfifo(folder / "pipe")
    expected = [Document(str(folder / name), f"in {name}") for name in sorted(names)]
    assert list(load_documents(str(folder))) == expected


def test_links_are_followed_and_every_folder_is_read_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"a/file": "one"})
    elsewhere = write(tmp_path / "elsewhere", {"other": "two", "alone": "three"})
    (folder / "a" / "back").symlink_to(folder)
    (folder / "b").symlink_to(elsewhere)
    (folder / "c").symlink_to(elsewhere)
    (folder / "d").symlink_to(elsewhere / "alone")
    names = [document.name for document in load_documents(str(folder))]
    assert names == [str(folder / name) for name in ("a/file", "b/alone", "b/other", "d")]


def test_a_file_that_is_not_text_and_a_link_that_leads_nowhere_are_named(tmp_path: Path) -> None:
    link = write(tmp_path / "data", {"a.txt": "text", "deep/b": ""}) / "gone"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"gone cannot be read \(No such file"):
        load_documents(str(tmp_path / "data"))
    link.unlink()
    (tmp_path / "data" / "deep" / "picture.png").write_bytes(b"ok\x89PNG")
    with pytest.raises(UsageError, match=r"picture\.png is not UTF-8 .*byte 2 is 0x89.*move it"):
        list(load_documents(str(tmp_path / "data")))


@pytest.mark.parametrize("name", ["", "file", ".hidden"])
def test_nothing_to_read_is_a_usage_error(tmp_path: Path, name: str) -> None:
    write(tmp_path / "data", {name or "empty": "" if name != ".hidden" else "text"})
    where = tmp_path / "data" / (name if name == "file" else "")
    with pytest.raises(UsageError, match=r"contains no text|is an empty folder"):
        make_tokenizer("char", load_documents(str(where)))


NOT_THERE = ("no-such-thing", "", "python_docs", "file/below", "x" * 5000, "a\0b", "loop")


@pytest.mark.parametrize("name", NOT_THERE, ids=lambda name: ascii(name)[:20])
def test_an_unknown_name_lists_what_is_possible(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, {"file": "text"}))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=r"does not exist: name a file, a folder"):
        load_documents(name)


def test_shakespeare_is_fetched_once_to_the_users_cache(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        (document,) = load_documents("tinyshakespeare")
        assert document.text == PLAY.decode()
    assert server.asked == 1
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file == user_cache() / "tinyshakespeare.txt" == tmp_path / "moe-microscope" / file.name


def test_a_damaged_copy_of_shakespeare_is_fetched_again(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write(user_cache(), {"tinyshakespeare.txt": "To be, or"})
    assert [one.text for one in load_documents("tinyshakespeare")] == [PLAY.decode()]
    assert server.asked == 1


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("another text", r"SHA-256 differs.*"),
        ("no network", r"ConnectionError.*"),
        ("a cache that cannot be written", ""),
    ],
)
def test_a_download_that_fails_has_a_way_out(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, trouble: str, reason: str
) -> None:
    cache = tmp_path / "cache"
    if trouble == "another text":
        server.content = b"<html>Log in to the hotel network</html>"
    elif trouble == "no network":
        monkeypatch.setattr(corpus, "SHAKESPEARE_URL", "http://127.0.0.1:1/input.txt")
    else:
        cache = write(tmp_path, {"file": ""}) / "file" / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with pytest.raises(UsageError, match=rf"{reason}download http.*pass the file to --data"):
        load_documents("tinyshakespeare")
    assert not list(tmp_path.glob("cache/*/*"))


def test_a_source_that_is_empty_or_a_pipe_or_named_twice_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "pipe"):
        with pytest.raises(UsageError, match=rf"{name}' is an empty folder or a pipe"):
            load_documents(str(tmp_path / name))
    with pytest.raises(UsageError, match="names python-docs twice"):
        load_sources(["python-docs", "python-docs:3"], "text")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_each_record_is_a_document(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, {"z.txt": "a file"}) / f"a{suffix}"
    records = [{"id": 1, "body": text} for text in ("one", "", "two\nlines")]
    if suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, records)), "utf-8-sig")
    else:
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    expected = [Document(f"{path}:1", "one"), Document(f"{path}:3", "two\nlines")]
    assert list(load_documents(str(path), text_field="body")) == expected
    found = list(load_documents(str(tmp_path), text_field="body"))
    assert found == [*expected, Document(str(tmp_path / "z.txt"), "a file")]
    with pytest.raises(UsageError, match=r"after 0 records: no text in 'text' of .*--text-field"):
        list(load_documents(str(path)))


@pytest.mark.parametrize(
    "line",
    [b'{"text": 3}', b"[1]", b'{"text": "cut', b'{"text": "\\ud800"}', b"\xff", b"[" * 100_000],
    ids=["number", "list", "cut", "half a character", "not UTF-8", "deep"],
)
def test_a_record_that_is_not_text_is_a_usage_error(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(line)
    with pytest.raises(UsageError, match=r"a\.jsonl, after 0 records: .*: correct it"):
        list(load_documents(str(tmp_path / "a.jsonl")))


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UsageError, match=r"pip install 'moe-microscope\[parquet\]'"):
        list(load_documents(str(tmp_path / "a.parquet")))


def test_sources_have_weights_and_a_file_may_be_called_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, {"a": "x", "b:1/c": "x"}))
    found = {one.name: one.weight for one in load_sources(["a:30", "b:1"], "text")}
    assert found == {"a": 30, "b:1": 1}
    with pytest.raises(UsageError, match=r"'a:0' does not exist: .* a weight from 1 to 9999"):
        load_sources(["a:0"], "text")
