"""llama.cpp as a peer: a package of another version is left out, with the version needed."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import decoding
from benchmarks.llama_cpp_peer import FUNCTIONS
from moe_model import LanguageModel
from tests.model.conftest import make_config

GGUF = "MODEL_ARCH = ExpertGatingFuncType = GGUFWriter = get_tensor_name_map = None\n"
LIBRARY = "class lib: {} = None\nffi = ggml_type = None\n"
WHOLE = LIBRARY.format(" = ".join(FUNCTIONS))
OLDER = WHOLE.replace("llama_kv_self_clear", "llama_kv_cache_clear")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages that the Python of the peers finds, with all that is needed."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "_llama_cpp_cpu.py").touch()
    (tmp_path / "llama" / "llama_cpp.py").write_text(WHOLE, "utf-8")
    (tmp_path / "gguf.py").write_text(GGUF, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_all_functions_that_the_peer_calls_are_looked_up_before() -> None:
    source = Path(decoding.LLAMA_CPP).read_text("utf-8")
    assert set(re.findall(r"\blib\.(\w+)", source)) == set(FUNCTIONS)
    assert decoding.NEEDED in source


def test_a_complete_package_is_not_refused(installed: Path) -> None:
    assert decoding.missing(sys.executable) == ""


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("llama/llama_cpp.py", OLDER, "llama_kv_self_clear"),
        ("llama/llama_cpp.py", "", "cannot import name 'ffi'"),
        ("llama/_llama_cpp_cpu.py", "raise ImportError('no library')", "no library"),
        ("llama/_llama_cpp_cpu.py", "import os; os._exit(9)", "exit code 9"),
        ("gguf.py", GGUF.replace("ExpertGatingFuncType", "Other"), "ExpertGatingFuncType"),
    ],
)
def test_an_older_package_is_left_out_with_the_version_needed(
    file: str, text: str, problem: str, installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed / file).write_text(text, "utf-8")
    model = LanguageModel(make_config())
    assert decoding.llama_cpp(sys.executable, model, [1, 2]) == {}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"llama.cpp: not measured: {sys.executable}: ")
    assert problem in line
    assert line.endswith("; needs pip install llama-cpp-cffi==0.4.42 cffi gguf")


def test_a_python_that_does_not_exist_is_named() -> None:
    assert decoding.missing("/no/such/python") == "No such file or directory"
