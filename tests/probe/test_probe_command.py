"""``moe-microscope probe`` on good and bad days: exit codes, hostile models, interruptions."""

import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyte
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralForCausalLM

from microscope_tui.commands.check.report import judge
from microscope_tui.extensions.anatomy import probing
from microscope_tui.extensions.anatomy.checkpoints import load
from microscope_tui.extensions.anatomy.probed_model import CannotProbe, folder_of, out_of_memory
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.runlog import RunFile
from moe_model import CharTokenizer
from tests.probe.folders import CHARACTERS, change, family, own, planted, probe, save, text
from tests.probe.layers import records

Run = Callable[..., int]


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("model") / "planted")


@pytest.fixture(name="words")
def _words(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text(text(400))
    return tmp_path / "words.txt"


@pytest.fixture(name="run")
def _run(model: Path, words: Path, out: Path) -> Run:
    """Probe the planted model over ``words`` in batches of 100 tokens, into ``out``."""

    def run() -> int:
        return probe(model, words, output=out, window=50, batch_size=2)

    return run


@pytest.fixture(name="out")
def _out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def refused(model: object, *texts: object, why: str, code: int = 64, **how: Any) -> None:
    """The command exits with ``code``, and its last line matches ``why``."""
    with redirect_stderr(StringIO()) as errors, pytest.raises(SystemExit) as exit_:
        probe(model, *texts, **how)
    assert exit_.value.code == code
    assert re.search(why, errors.getvalue().splitlines()[-1]), errors.getvalue()


def test_bad_texts_end_in_one_line(model: Path, words: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary").write_bytes(b"abc\0def")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "strange.txt").write_text("日本")
    refused(model, output=out, why="name at least one text")
    refused(model, tmp_path / "absent", output=out, why="no such file")
    refused(model, tmp_path / "empty.txt", output=out, why="no text to read")
    refused(model, tmp_path / "binary", output=out, why="binary .byte 3")
    refused(model, tmp_path / "latin", output=out, why="not UTF-8")
    refused(model, tmp_path / "folder", output=out, why="contains no file")
    refused(model, tmp_path / "strange.txt", output=out, why="tokenizer cannot encode")
    refused(model, words, output=tmp_path, why="exists already")
    refused(model, words, output=out, window=65, why="reads at most 64 tokens")
    refused(model, words, output=out, tokens=0, why="--tokens 0")
    if not torch.cuda.is_available():
        refused(model, words, output=out, device="cuda", why="no usable GPU")
    assert not out.exists()


def test_models_that_cannot_be_probed_are_refused_in_one_line(words: Path, tmp_path: Path) -> None:
    dense = LlamaForCausalLM(
        LlamaConfig(vocab_size=97, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1)
    )  # fmt: skip
    save(dense, tmp_path / "dense")
    refused(tmp_path / "dense", words, why="no MoE layer found in LlamaForCausalLM")
    bare = planted(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    refused(bare, words, why="no tokenizer.json")
    refused(words, words, why="a file; name the folder")
    refused(tmp_path, words, why="neither config.json nor checkpoint.json")
    refused("some/where", words, why="add --download")
    refused("nowhere", words, why="no such folder")
    cut = planted(tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(cut, words, why="cannot load it")
    other = planted(tmp_path / "other")
    change(other / "config.json", num_hidden_layers=3)
    refused(other, words, why="weights are missing")
    damaged = own(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no")
    refused(damaged, words, why="is damaged")


def test_pickles_are_never_loaded(words: Path, tmp_path: Path) -> None:
    folder, trap = planted(tmp_path / "model"), tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (trap,)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(folder, words, why="only pytorch_model.bin, a pickle")
    index = {"weight_map": {"a": "../../pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, words, why="files outside of the folder")
    assert not trap.exists()


def test_an_architecture_that_is_not_a_model_gives_way_to_the_automatic_class(
    words: Path, tmp_path: Path, out: Path
) -> None:
    folder = planted(tmp_path / "model")
    change(folder / "config.json", architectures=["Trainer"])
    assert probe(folder, words, output=out) == 0


def test_code_of_a_model_is_never_run(words: Path, tmp_path: Path, out: Path) -> None:
    trap = tmp_path / "sprung"
    map_ = {"AutoConfig": "trap.C", "AutoModelForCausalLM": "trap.M"}

    def spring(folder: Path, **fields: Any) -> Path:
        (folder / "trap.py").write_text(f"open({str(trap)!r}, 'w')\n")
        change(folder / "config.json", auto_map=map_, **fields)
        return folder

    foreign = spring(planted(tmp_path / "foreign"), model_type="trap", architectures=["M"])
    refused(foreign, words, why="requires custom code .auto_map")
    known = spring(planted(tmp_path / "known"), attn_implementation="evil/kernel")
    assert probe(known, words, output=out) == 0
    adapter = planted(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    refused(adapter, words, why="merge it")
    assert not trap.exists()


def test_without_torch_one_line_names_what_to_install(words: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'torch' else find(name, *more)\n"
        "from microscope_tui.cli import main\n"
        f"main(['probe', 'some/model', {str(words)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    error = "moe-microscope: probe needs pip install 'moe-microscope[train]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (64, "", error)


def test_slices_have_their_names_and_share_the_tokens(
    model: Path, words: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("first ")
    (folder / "deep" / "b.txt").write_text("second ")
    (folder / "c.bin").write_bytes(b"\0")
    (folder / ".hidden").write_text("hidden")
    (folder / "link").symlink_to(words)
    assert probe(model, f"code={folder}", words, f"code={words}", tokens=100, output=out) == 0
    assert "c.bin: binary" in capsys.readouterr().err
    with Routing(out / "routing.bin") as routing:
        assert routing.slices == ("code", "words")
        found = b"".join(routing.text(0, routing.tokens)).decode()
        assert found == "first second " + text(37) + text(50)
        assert [routing.slices_of(n, n + 1)[0] for n in (0, 49, 50, 99)] == [0, 0, 1, 1]
        assert [routing.window_of(n) for n in (0, 5, 6, 12, 13, 50, 99)] == [0, 0, 1, 1, 2, 3, 3]


def test_characters_without_a_token_are_left_out_and_listed(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, mixed = own(tmp_path / "model"), tmp_path / "mixed.txt"
    mixed.write_text("a `quick` fox, 日\x1b[31m and $ 3 more words; ")
    assert probe(model, mixed, output=out) == 0
    with Routing(out / "routing.bin") as routing:
        assert b"".join(routing.text(0, routing.tokens)) == b"a quick fox, 31m and  3 more words; "
    errors = capsys.readouterr().err
    assert " left out: the model has no token for them" in errors.partition("6 characters '`")[2]
    assert "\x1b" not in errors, "repr() spells what a terminal could obey"
    mixed.write_text("日本\U0001d518")
    refused(model, mixed, why="nothing but 3 characters '日本.', and the model has no token")


@pytest.mark.parametrize("make", [own, lambda folder: family("mixtral", folder)])
def test_what_a_model_writes_is_a_slice_of_its_own(
    make: Callable[[Path], Path], tmp_path: Path, words: Path, out: Path
) -> None:
    assert probe(make(tmp_path / "model"), words, generate=True, output=out) == 0
    with Routing(out / "routing.bin") as routing:
        assert routing.slices == ("words", "words written")
        slices = list(routing.slices_of(0, routing.tokens))
        prompt = slices.count(0)
        assert slices == sorted(slices)
        assert prompt < len(slices) <= 2 * prompt
        assert b"".join(routing.text(0, prompt)).decode() == text(400)[:prompt]
        ids, texts = routing.token_ids(prompt, 10**6), routing.text(prompt, 10**6)
        if make is own:
            assert CharTokenizer(CHARACTERS).decode(ids).encode() == b"".join(texts)


def in_third_batch(happens: Callable[[], Any]) -> Any:
    """``batches`` of ``probing``, where something happens before the third."""
    batches = probing.batches

    def counted(*args: Any) -> Any:
        for number, batch in enumerate(batches(*args), 1):
            if number == 3:
                happens()
            yield batch

    return counted


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_readable_shorter_probe(
    number: signal.Signals, run: Run, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(probing, "batches", in_third_batch(lambda: send(number)))
    assert run() == 130
    assert "interrupted: 200 of 400 tokens are written" in capsys.readouterr().err
    (end,) = (one for one in records(out, "event") if one["event"] == "end")
    assert (end["step"], end["reason"]) == (2, "signal")
    with Routing(out / "routing.bin") as routing:
        assert (routing.tokens, routing.shape.capacity) == (200, 400)
        assert sum(routing.tables.counts[0][0]) == 400
    assert sorted(os.listdir(out)) == ["metrics.jsonl", "routing.bin"]


def test_progress_never_shares_a_line_with_a_message(run: Run, monkeypatch: Any) -> None:
    alarm = partial(logging.getLogger("microscope_tui.probe").warning, "step 2: COLLAPSE")
    monkeypatch.setattr(probing, "batches", in_third_batch(alarm))
    seconds = SimpleNamespace(monotonic=count().__next__)
    monkeypatch.setattr("microscope_tui.extensions.anatomy.probe_command.time", seconds)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging, "lastResort", None)
    screen, printed = pyte.Screen(300, 20), StringIO()
    monkeypatch.setattr(printed, "isatty", lambda: True)
    with redirect_stderr(printed):
        assert run() == 0
    pyte.Stream(screen).feed(printed.getvalue().replace("\n", "\r\n"))
    assert "25% of 400 tokens, " in printed.getvalue()
    begins = [line.removeprefix("moe-microscope: ")[:11] for line in screen.display[:4]]
    assert begins == ["texts longe", "step 2: COL", "routing.bin", " " * 11]


def test_a_signal_in_a_written_batch_waits_for_it(run: Run, out: Path, monkeypatch: Any) -> None:
    write = probing._Run._write

    def signalled(*args: Any) -> None:
        send(signal.SIGINT)
        write(*args)

    monkeypatch.setattr(probing._Run, "_write", signalled)
    assert run() == 130
    assert len(records(out)) == 1
    with Routing(out / "routing.bin") as routing:
        assert routing.tokens == 100


def test_a_signal_while_tables_are_computed_leaves_them_out(
    run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(what: str, done: int, whole: int) -> None:
        if what == "layers":
            send(signal.SIGINT)

    monkeypatch.setattr(
        "microscope_tui.extensions.anatomy.probe_command._Progress", lambda: signalled
    )
    assert run() == 130
    with Routing(out / "routing.bin") as routing:
        assert (routing.tokens, routing.tables.counts) == (400, [])


def test_a_full_disk_is_one_line(model: Path, words: Path, out: Path, monkeypatch: Any) -> None:
    full = OSError(28, "No space left on device", str(out))
    finish = "microscope_tui.extensions.anatomy.routing_file.RoutingWriter.finish"
    monkeypatch.setattr(finish, mock.Mock(side_effect=full))
    refused(model, words, why="out: cannot be written .No space", code=3, output=out)
    assert os.listdir(out) == ["metrics.jsonl"]


def test_out_of_memory_names_what_to_lower_and_keeps_what_is_there(
    model: Path, words: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "batches", in_third_batch(mock.Mock(side_effect=MemoryError)))
    why = r"lower --batch-size .2. or --window .50.*; what came before"
    refused(model, words, why=why, code=3, output=out, window=50, batch_size=2)
    (end,) = (one for one in records(out, "event") if one["event"] == "end")
    assert end["reason"] == "failed"
    with Routing(out / "routing.bin") as routing:
        assert routing.tokens == 200


@pytest.mark.parametrize(
    ("error", "why", "code"),
    [(MemoryError(), "out of memory", 3), (KeyboardInterrupt(), "nothing is written", 130)],
)
def test_a_probe_of_nothing_leaves_nothing(
    error: BaseException, why: str, code: int, model: Path, words: Path, out: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(probing, "batches", lambda *_: iter(mock.Mock(side_effect=error), None))
    refused(model, words, output=out, why=why, code=code)
    assert not out.exists()


def test_errors_of_memory_are_distinguished_from_others() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    assert not out_of_memory(ValueError("out of memory"))


class Remote:
    fetched: list[str] | None = None

    def __init__(self, names: list[str], folder: Path) -> None:
        self.names, self.folder = names, folder

    def model_info(self, name: str, files_metadata: bool) -> Any:
        files = [type("F", (), {"rfilename": one, "size": 10**9})() for one in self.names]
        return type("Info", (), {"siblings": files})()

    def snapshot_download(self, name: str, **how: Any) -> str:
        if how.get("local_files_only"):
            raise FileNotFoundError(name)
        self.fetched = how["allow_patterns"]
        return str(self.folder)


def test_a_name_is_fetched_only_when_asked_and_its_size_is_printed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "x.py"]
    names += ["old/model.safetensors", "consolidated.safetensors"]
    remote = Remote(names, tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: remote)
    monkeypatch.setattr("huggingface_hub.snapshot_download", remote.snapshot_download)
    with pytest.raises(CannotProbe, match="--download"):
        folder_of("org/name", download=False)
    assert remote.fetched is None
    assert folder_of("org/name", download=True) == tmp_path
    assert "fetching org/name: 2.0 GB" in capsys.readouterr().err
    assert remote.fetched == ["config.json", "model.safetensors"]
    remote.names, remote.fetched = ["config.json", "pytorch_model.bin"], None
    with pytest.raises(CannotProbe, match="no safetensors"):
        folder_of("org/name", download=True)
    assert remote.fetched is None


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_dtype_is_that_of_the_weights(dtype: str, words: Path, tmp_path: Path, out: Path) -> None:
    assert probe(family("mixtral", tmp_path / "model"), words, dtype=dtype, output=out) == 0
    with Routing(out / "routing.bin") as routing:
        assert routing.dtype == dtype
    ours = load(str(own(tmp_path / "own")), dtype=dtype, device="cpu")
    expected = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    assert next(ours.model.parameters()).dtype == expected


def test_the_default_folder_names_model_and_time(
    model: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert probe(model, words) == 0
    (folder,) = (tmp_path / "logs").iterdir()
    assert re.fullmatch(r"probe-planted-\d{4}-\d\d-\d\d-\d{6}", folder.name)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_layers_of_further_tokens_are_left_out(words: Path, tmp_path: Path, out: Path) -> None:
    assert probe(own(tmp_path / "model", num_nextn_predict_layers=1), words, output=out) == 0
    assert not any("incomplete" in line for line in records(out))
    with Routing(out / "routing.bin") as routing:
        assert routing.shape.layers == (1, 2, 3, 4, 5)


def test_check_finds_a_router_that_sends_everything_to_two_experts(
    model: Path, words: Path, tmp_path: Path
) -> None:
    sick = MixtralForCausalLM.from_pretrained(model)
    with torch.no_grad():
        sick.model.layers[1].mlp.gate.weight.zero_()
        sick.model.layers[1].mlp.gate.weight[:2] = 1.0
    found = {}
    for name, folder, most in (
        ("sound", model, 400),
        ("sick", save(sick, tmp_path / "model"), 400),
        ("short", model, 60),
    ):
        out = tmp_path / name
        assert probe(folder, words, output=out, window=50, batch_size=1, tokens=most) == 0
        found[name] = judge(RunFile(name, out / "metrics.jsonl", 0.0))
    codes = {"sound": 0, "sick": 2, "short": 3}
    assert {name: one.exit_code for name, one in found.items()} == codes
    ((finding, _),) = found["sick"].findings
    assert (finding.rule, finding.layers, finding.onset) == ("COLLAPSE", ("L1",), 1)
    assert found["short"].problem == "not judged: L0 has 15 assignments per expert, needs 20"
