"""Which tokenizer a name means. The oracle is transformers, and the hub's own library, offline."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import example, given, strategies as st
from transformers import AutoTokenizer

from moe_model import SETTINGS, TOKENIZER, CharTokenizer, PretrainedTokenizer, UsageError
from moe_model.training.corpus import END, Document, make_tokenizer, train_byte_pairs

DOCUMENTS = [
    Document("one", "the router sends the tokens to the experts\n" * 20),
    Document("two", "  the experts wait for tokens, and the router waits for nobody.\r\n" * 20),
]
BYTE_PAIRS = train_byte_pairs(DOCUMENTS, 300)
SPECIAL_TOKENS = "special_tokens_map.json"

texts = st.text(st.characters(exclude_categories=["Cs"]))
awkward = st.lists(st.sampled_from(["the", " ", "\n", "\r", "\0", "é", "😀", "'s", END])).map(
    "".join
)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the hub's library, which must not ask for anything."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def keep(hub: Path, name: str, files: dict[str, bytes]) -> None:
    """Lay out ``files`` as the hub's library keeps a model: a snapshot of links to blobs."""
    model = hub / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    write(model / "refs", {"main": commit.encode()})
    write(model / "blobs", {f"blob-{file}": content for file, content in files.items()})
    (model / "snapshots" / commit).mkdir(parents=True)
    for file in files:
        (model / "snapshots" / commit / file).symlink_to(f"../../blobs/blob-{file}")


def test_char_knows_exactly_the_characters_of_all_documents() -> None:
    tokenizer = make_tokenizer("char", [Document("a", "cab"), Document("b", "ad\n")])
    assert isinstance(tokenizer, CharTokenizer)
    assert tokenizer.vocabulary == "\nabcd"


@given(texts | awkward)
@example(END)
def test_byte_pairs_decode_back_exactly_and_no_text_holds_the_end_by_itself(text: str) -> None:
    ids = BYTE_PAIRS.encode(text).tolist()
    assert BYTE_PAIRS.decode(ids) == text
    assert all(0 <= i < len(BYTE_PAIRS) for i in ids)
    assert BYTE_PAIRS.end not in ids


def test_byte_pairs_are_what_transformers_makes_of_the_files(tmp_path: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(write(tmp_path, dict(BYTE_PAIRS.files)))
    assert theirs.eos_token_id == BYTE_PAIRS.end
    for text in (DOCUMENTS[1].text, f"to the {END} of it", " 's😀\0"):
        assert theirs(text)["input_ids"] == BYTE_PAIRS.encode(text).tolist()
    assert theirs.decode(theirs(DOCUMENTS[1].text)["input_ids"]) == DOCUMENTS[1].text


def test_byte_pairs_are_learnt_the_same_every_time_from_all_documents() -> None:
    again = make_tokenizer("bpe", DOCUMENTS, 300)
    assert again.files == BYTE_PAIRS.files
    assert len(again) == 300
    assert len(again.encode("the router waits")) < len("the router waits") / 2
    assert make_tokenizer("bpe", DOCUMENTS[:1], 300).files != BYTE_PAIRS.files
    assert len(make_tokenizer("bpe", [Document("a", "abab")])) < 257 + 4


def test_byte_pairs_have_room_for_every_byte() -> None:
    tokenizer = make_tokenizer("bpe", DOCUMENTS, 256)
    assert len(tokenizer) == 257
    assert len(tokenizer.encode("the")) == 3


def test_a_folder_is_read_without_the_code_it_names(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Evil"}
    settings = {"eos_token": END, **code}
    files = {**BYTE_PAIRS.files, SETTINGS: json.dumps(settings).encode(), "evil.py": b"raise"}
    tokenizer = make_tokenizer(str(write(tmp_path, files)), [])
    assert tokenizer.end == BYTE_PAIRS.end
    assert sorted(tokenizer.files) == [TOKENIZER, SETTINGS]
    assert b"evil" not in b"".join(tokenizer.files.values()).lower()
    assert b"PreTrainedTokenizerFast" in tokenizer.files[SETTINGS]


@pytest.mark.parametrize("apart", [{}, {"eos_token": {"content": "the"}}, {"eos_token": "the"}])
@pytest.mark.parametrize("settings", [{}, {"eos_token": END}, {"added_tokens_decoder": {}}])
def test_the_end_is_the_one_that_transformers_takes(
    tmp_path: Path, apart: dict[str, object], settings: dict[str, object]
) -> None:
    said = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    files = {SETTINGS: json.dumps(said).encode(), SPECIAL_TOKENS: json.dumps(apart).encode()}
    folder = write(tmp_path, {**BYTE_PAIRS.files, **files})
    theirs = AutoTokenizer.from_pretrained(folder)
    assert make_tokenizer(str(folder), []).end == theirs.eos_token_id


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "has no tokenizer.json"),
        ({"tokenizer.model": b"x"}, "has no tokenizer.json"),
        (
            {**BYTE_PAIRS.files, SPECIAL_TOKENS: b"[]"},
            "special_tokens_map.json is not a JSON object",
        ),
    ],
    ids=["empty", "sentencepiece", "bad map"],
)
def test_a_folder_without_a_sound_tokenizer_is_a_usage_error(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        make_tokenizer(str(write(tmp_path, files)), [])


@pytest.mark.parametrize("name", ["", "gpt2", "a/b/c", "/nowhere/x", "a b/c", "a\0/b", "x" * 5000])
def test_an_unknown_name_lists_the_choices(name: str) -> None:
    with pytest.raises(UsageError, match=r"choose char, bpe, a folder with .*, or the org/name"):
        make_tokenizer(name, DOCUMENTS)


def test_a_tokenizer_of_the_hub_is_read_from_what_the_library_has_kept(hub: Path) -> None:
    keep(hub, "some-org/some.model_1", {**BYTE_PAIRS.files, "model.safetensors": b""})
    tokenizer = make_tokenizer("some-org/some.model_1", [])
    assert isinstance(tokenizer, PretrainedTokenizer)
    assert tokenizer.files == BYTE_PAIRS.files


@pytest.mark.parametrize("name", ["org/name", "a--b/c..d"])
def test_without_a_network_there_is_a_way_out(hub: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be downloaded .*name their folder"):
        make_tokenizer(name, [])


def test_the_hub_is_asked_for_the_tokenizer_only_and_not_if_there_is_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    def download(name: str, **more: object) -> str:
        requests.append((name, more))
        return str(write(tmp_path / "downloaded", dict(BYTE_PAIRS.files)))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    make_tokenizer("org/name", [])
    expected = [("org/name", {"allow_patterns": [TOKENIZER, SETTINGS, SPECIAL_TOKENS]})]
    assert requests == expected
    write(tmp_path / "org" / "name", dict(BYTE_PAIRS.files))
    assert make_tokenizer("org/name", []).files == BYTE_PAIRS.files
    assert requests == expected
