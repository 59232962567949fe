"""What a person can get wrong ends with code 64 and one line: what, the values, what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forked import Program
from tests.training.story import Capsys

WRONG = [
    (["--bogus=1"], "Unknown option"),
    (["--top-k=9"], "Fields of the model: --model.FIELD, see 'python train.py --help-all'."),
    (["--num-experts=7"], "Unknown option: --num-experts"),
    (["--steps=many"], "unable to convert"),
    (["--steps=1.5"], "is not a whole number"),
    (["--model.hidden_size=32.5"], "is not a whole number"),
    (["--steps=0"], "--steps 0 is too few: choose 1 or more."),
    (["--mtp", "--model.num_nextn_predict_layers=0"], "--mtp contradicts --model.num_nextn"),
    (["--drop-policy=weight"], "--drop-policy weight has no effect without --capacity-factor"),
    (["--model.rope_theta=nan"], "rope_theta=nan is out of range"),
    (["--log-dir=same", "--checkpoint-dir=same"], "are both same: choose two folders"),
    (
        ["--drop-policy=weight", "--capacity-factor=1", "--model.drop_policy=position"],
        "--model.drop_policy specified multiple times",
    ),
    (["--router-noise=1.5"], "router_jitter_noise=1.5 is out of range"),
    (["--mtp-weight=0.1"], "--mtp-weight 0.1 has no effect without --mtp"),
    (["--model.rope_scaling.factor=4"], "original_max_position_embeddings"),
    (["--preset=large"], "--preset large is unknown: choose one of tiny, small, shakespeare, deep"),
    (["--data=/no/such/file"], "--data '/no/such/file' does not exist: name a file, a folder"),
    (["--tokenizer=words"], "--tokenizer"),
    (["--resume=auto"], "--resume auto needs the name of the run: add --run NAME."),
    (["--resume=/no/such/run"], "--resume /no/such/run: no checkpoint found"),
    (["--config=/no/such.toml"], "--config /no/such.toml is not a file"),
    (["--dense-twin", "--balance=aux"], "--balance aux does not work with a dense model, which"),
    (["--dense-twin", "--capacity-factor=1"], "capacity_factor 1.0 does not work with a dense"),
    (["--dense-twin", "--mtp"], "--mtp True does not work with a dense model"),
    (["--dense-twin", "--on-collapse=stop"], "--on-collapse stop does not work with a dense"),
    (["--model.first_k_dense_replace=3", "--z-loss-weight=1"], "1.0 does not work with a dense"),
    (["--optimizer=muon", "--parallel=fsdp"], "Muon needs whole matrices"),
    (["--trace-sample", "--parallel=fsdp"], "needs the whole model in one process"),
    (["--trace-sample", "--expert-parallel=2"], "needs the whole model in one process"),
    (["--expert-parallel=2"], "expert-parallel 2 must divide the number of processes, which is 1"),
    (["--parallel=ddp"], "--parallel ddp needs several processes: start torchrun"),
    (["--lr=0"], "--lr 0.0 is out of range"),
    (["--warmup=9", "--steps=8"], "--warmup 9 is out of range: choose 0 to 8."),
    (["--lr-schedule=wsd", "--decay=1.1"], "--decay 1.1 is out of range: choose 0 to 1."),
    (["--min-lr=-0.1"], "--min-lr -0.1 is out of range"),
    (["--decay=0.1"], "no effect with --lr-schedule cosine: omit it, or choose --lr-schedule wsd."),
    (["--lr-schedule=constant", "--min-lr=0.1"], "choose --lr-schedule cosine or wsd."),
    (["--router-lr=nan"], "--router-lr nan is out of range"),
    (["--weight-decay=-1"], "--weight-decay -1.0 is out of range"),
    (["--clip=-1"], "--clip -1.0 is out of range"),
    (["--seed=-1"], "--seed -1 is out of range"),
    (["--seq-len=64"], "--seq-len 64 is more than max_position_embeddings=32"),
    (["--dtype=fp8"], "Invalid value"),
    (["--run=a/b"], "--run 'a/b' cannot name a folder"),
    (["--run=.."], "--run '..' cannot name a folder"),
    (["--model.n_group=3"], "not divisible by n_group=3"),
    (["--model.vocab_size=5"], "--model.vocab_size 5 is less than the 24 tokens"),
    (["--force-collapse=x"], "--force-collapse 'x' is not LAYER@STEP with a layer of 1, 2 and"),
    (["--force-collapse=0@1"], "'0@1' is not LAYER@STEP with a layer of 1, 2"),
    (["--force-collapse=1@9", "--steps=8"], "1, 2 and a step from 1 to 8: correct it."),
    (["--balance=none", "--seq-aux-weight=0.1"], "has no effect with --balance none"),
    (["--balance=bias", "--aux-weight=0.1"], "--aux-weight 0.1 has no effect with --balance bias"),
    (["--balance=aux", "--bias-update-rate=0.1"], "has no effect with --balance aux"),
    (["--balance-scope=pass"], "--balance-scope pass has no effect with --balance bias"),
    (["--keep=0"], "--keep 0 is out of range: choose 1 or more, or all."),
    (["--bias-update-rate=-1"], "--bias-update-rate -1.0 is out of range"),
    (["--sample-prompt=ÄÖ"], "characters 'ÄÖ' do not occur"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_a_usage_error_exits_64_and_says_what_to_do(
    wrong: list[str], message: str, train: Callable[..., int], tmp_path: Path, capsys: Capsys
) -> None:
    assert train(*wrong) == 64
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "logs").exists(), "nothing may be written before the options are sound"
    assert not (tmp_path / "ck").exists()


def test_the_process_exits_64_too_and_not_2(start: Callable[..., Program]) -> None:
    process = start("--steps=0")
    output, narration = process.communicate()
    assert (process.returncode, output) == (64, "")
    assert narration.startswith("train.py: --steps 0 is too few")
    assert narration.endswith("\nTry 'python train.py --help'.\n"), "it can be pasted"
    assert "Traceback" not in narration


@pytest.mark.parametrize("kind", ["logs", "ck"])
def test_an_existing_run_is_refused(kind: str, train: Any, tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / kind / "r").mkdir(parents=True)
    (tmp_path / kind / "r" / "something").write_text("to lose", "utf-8")
    assert train("--run=r", "--steps=1") == 64
    assert "already exists: resume it (--resume auto), choose another" in capsys.readouterr().err
