"""Runs of seconds: a few thousand parameters on a short text that the tests make themselves."""

import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from moe_model.training import console
from tests.forked import ROOT, ForkServer, Program
from tests.training.story import KilledError, Log, ReadLog, Train, before_step, die

SMALL = [
    "--model.hidden_size=32", "--model.num_hidden_layers=3", "--model.intermediate_size=48",
    "--model.moe_intermediate_size=16", "--model.num_attention_heads=2",
    "--model.kv_lora_rank=16", "--model.qk_nope_head_dim=8", "--model.qk_rope_head_dim=8",
    "--model.v_head_dim=8", "--model.max_position_embeddings=32",
    "--batch-size=4", "--device=cpu", "--dtype=fp32",
]  # fmt: skip
SHORT = ("--steps=4", "--save-every=2", "--eval-every=100")
"""A run with the checkpoints ``latest`` (step 4), which is ``best`` as well, and ``previous``."""


def last_of_each(flags: Sequence[str]) -> list[str]:
    """``--data=A B`` are two values."""
    last = {flag.split("=")[0]: flag for flag in flags}
    sources = last.pop("--data", "").split()
    return [*last.values(), *sources]


def log_of(folder: Path) -> Log:
    text = (folder / "metrics.jsonl").read_text("utf-8")
    complete = text[: text.rfind("\n") + 1].splitlines()
    return [json.loads(line) for line in complete]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"the {n} of {n * 7 % 13} routers sends token {n * n % 97}.\n" for n in range(100)]
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.fixture(scope="session")
def arguments_in(text_file: Path) -> Callable[..., list[str]]:
    """The command line of a small run that writes below ``folder``; ``more`` wins."""

    def arguments(folder: Path, *more: str) -> list[str]:
        own = [f"--log-dir={folder / 'logs'}", f"--checkpoint-dir={folder / 'ck'}"]
        return last_of_each([f"--data={text_file}", *own, *SMALL, *more])

    return arguments


@pytest.fixture
def arguments(arguments_in: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    return partial(arguments_in, tmp_path)


@pytest.fixture(scope="session")
def trainer() -> Iterator[ModuleType]:
    """``train.py``, imported from where it is."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        # It takes longer than the steps of a short run.
        patch.setattr(console, "SAMPLE_TOKENS", 20)
        yield module


@pytest.fixture
def train(trainer: ModuleType, arguments: Callable[..., list[str]]) -> Train:
    return lambda *more: trainer.run_command(trainer.app, arguments(*more))


@dataclass
class Trained:
    """A run ``r`` that has ended, in ``folder``; many tests read it and none changes it."""

    folder: Path
    code: int
    narration: str

    @property
    def log(self) -> Log:
        return log_of(self.folder / "logs" / "r")

    @property
    def checkpoints(self) -> Path:
        return self.folder / "ck" / "r"


GetTrained = Callable[..., Trained]


@pytest.fixture(scope="session")
def trained(trainer: ModuleType, arguments_in: Any, tmp_path_factory: Any) -> GetTrained:
    """Train ``r`` with these options, once for all tests; ``after`` it was trained with others."""

    @cache
    def run(*flags: str, after: tuple[str, ...] = ()) -> Trained:
        folder = tmp_path_factory.mktemp("trained")
        if after:
            shutil.copytree(run(*after).folder, folder, symlinks=True, dirs_exist_ok=True)
            flags = ("--resume=auto", *flags)
        with redirect_stderr(io.StringIO()) as narration:
            code = trainer.run_command(trainer.app, arguments_in(folder, "--run=r", *flags))
        return Trained(folder, code, narration.getvalue())

    return run


@pytest.fixture
def copied(trained: GetTrained, tmp_path: Path) -> GetTrained:
    """A copy of a run of ``trained`` in the test's own folder, where ``train`` resumes it."""

    def copy(*flags: str, after: tuple[str, ...] = ()) -> Trained:
        run = trained(*flags, after=after)
        shutil.copytree(run.folder, tmp_path, symlinks=True, dirs_exist_ok=True)
        return Trained(tmp_path, run.code, run.narration)

    return copy


@pytest.fixture
def start(
    fork_server: ForkServer, arguments: Callable[..., list[str]]
) -> Iterator[Callable[..., Program]]:
    """Start the trainer in a process of its own, which does not outlive the test."""
    started: list[Program] = []

    def program(*more: str) -> Program:
        started.append(fork_server.start(str(ROOT / "train.py"), *arguments(*more)))
        return started[-1]

    yield program
    for each in started:
        if each.returncode is None:
            each.kill()


@pytest.fixture
def train_until(trainer: ModuleType, train: Train) -> Callable[..., None]:
    """Train with these options and die before ``step``, or while its checkpoint is written."""

    def until(step: int, *options: str, saving: bool = False) -> None:
        def dying_save(name: str, run: Any, *rest: Any) -> Any:
            if run.progress.step == step:
                (rest[0].folder / f".step-{step:08d}.partial").mkdir()
                die()
            return real_save(name, run, *rest)

        real_save = trainer.save_checkpoint
        with pytest.MonkeyPatch.context() as patch:
            if saving:
                patch.setattr(trainer, "save_checkpoint", dying_save)
            else:
                before_step(trainer, patch, step, die)
            with pytest.raises(KilledError):
                train(*options)

    return until


@pytest.fixture
def read_log(tmp_path: Path) -> ReadLog:
    return lambda run: log_of(tmp_path / "logs" / run)


@pytest.fixture(scope="session")
def ranks(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder that the ranks of ``worlds.py`` worked in; those that mostly wait start first."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("apart", "together")}

    @cache
    def start(kind: str) -> Program:
        return fork_server.start("-m", "tests.training.worlds", kind, str(folders[kind]))

    def finished(kind: str) -> Path:
        start("apart")
        assert start(kind).wait(timeout=300) == 0
        return folders[kind]

    return finished
