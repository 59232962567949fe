"""Files of other tools work wherever a command takes a path."""

import json
import os
import random
import shlex
import shutil
from pathlib import Path

import pytest

from microscope_tui.app.remembered import SavedView, save_view
from microscope_tui.sources import FORMATS
from tests.conftest import Call
from tests.sources import wandb_bytes as wb

GOLDEN = Path(__file__).parents[1] / "sources" / "golden"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "wandb" / "run-1" / "run-a.wandb"
    path.parent.mkdir(parents=True)
    shutil.copy(GOLDEN / "wandb", path)
    os.utime(path, (1e9, 1e9))
    return path


def test_a_source_and_the_run_log_imported_from_it_have_the_same_verdict(
    call: Call, source: Path, tmp_path: Path
) -> None:
    code, out, err = call("import", source, tmp_path / "logs")
    assert code == 0, err
    (log,) = (tmp_path / "logs").glob("*/metrics.jsonl")
    assert f"{log}: " in out
    reports = [json.loads(call("check", path, "--json")[1]) for path in (source, log)]
    for report in reports:
        for run in report["runs"]:
            del run["path"], run["run"], run["state"]
    assert reports[0] == reports[1]
    code, out, _ = call("check", tmp_path / "logs", "--format-only")
    assert code == 0, out
    code, _, err = call("import", source, tmp_path / "logs")
    assert code == 64
    assert "exists already" in err


def test_an_imported_log_that_begins_at_step_0_is_sound(call: Call, tmp_path: Path) -> None:
    rows = [{"step": step, "max_vio/max": 0.5} for step in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("import", tmp_path / "train.jsonl", tmp_path / "logs")[0] == 0
    code, out, _ = call("check", tmp_path / "logs", "--format-only")
    assert code == 0, out
    assert "3 steps" in out


def test_a_table_without_known_keys_says_how_to_add_them(call: Call, tmp_path: Path) -> None:
    table = tmp_path / "run.csv"
    table.write_text("step,load_0_0,load_0_1\n1,3,5\n2,4,4\n")
    code, out, _ = call("check", table)
    assert code == 3
    assert "none known as a router (load_0_0, load_0_1). --map QUANTITY=REGEX names" in out
    for command in (("import", table, tmp_path / "logs"), ("snapshot", table)):
        code, _, err = call(*command)
        assert code == 3
        assert "--map QUANTITY=REGEX names the keys to use" in err


def test_the_command_printed_for_unknown_keys_shows_the_run(call: Call, tmp_path: Path) -> None:
    table = tmp_path / "run.csv"
    chance = random.Random(1)
    pairs = [(step, chance.randrange(100)) for step in range(1, 301)]
    rows = [(s, 900 - x, 800 + x, 0, 300, 480, 510 - x, 490, 520 + x, 1000) for s, x in pairs]
    cells = [f"load {layer}/{expert}" for layer in (1, 2) for expert in range(4)]
    lines = [("step", *cells, "tokens_per_step"), *rows]
    table.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    code, out, _ = call("check", table)
    assert code == 3
    shape = "run.csv, 300 steps, 9 keys, none known as a router. Looks like: load N/M (N the "
    assert f"{shape}layer and M the expert, 8 keys, values 0 to 900: counts)" in out
    command = shlex.split(out.partition("Show it with: ")[2])
    assert command[-2:] == ["--top-k", "2"]
    code, out, _ = call("check", *command[1:])
    assert code == 2
    assert "1 of 4 experts (2)" in out, out
    code, out, _ = call("check", *command[1:], "--map", r"entropy=entorpy (?P<layer>\d+)")
    assert "matches no key; the nearest are load N/N" in out


@pytest.mark.parametrize("is_over", [False, True])
def test_a_run_without_known_keys_waits_only_while_it_is_live(
    call: Call, tmp_path: Path, is_over: bool
) -> None:
    path = tmp_path / "run-a.wandb"
    rows = [wb.history({"mix/1": 10 + step}, step) for step in range(9)]
    path.write_bytes(wb.log([*rows, wb.exit_record(0)] if is_over else rows))
    state = "no router data" if is_over else "waiting"
    assert f"NO VERDICT at step 0 ({state})" in call("check", path)[1]
    os.utime(path, (1e9, 1e9))
    assert "NO VERDICT at step 0 (no router data)" in call("check", path)[1]
    if is_over:
        assert call("check", path, "--follow")[0] == 3


def test_keys_that_were_confirmed_on_the_screen_are_named_and_used_if_asked_for(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    table = tmp_path / "run.csv"
    table.write_text("step,load_0_0,load_0_1\n" + "".join(f"{n},3,5\n" for n in range(1, 301)))
    rule = r"tokens_per_expert=load_(?P<layer>\d+)_(?P<expert>\d+)"
    before = call("check", table, "--top-k", "1")
    save_view(table, SavedView(maps=(rule,), top_k=1))
    note = f"confirmed on the screen for this path; --remembered uses them: --map '{rule}'"
    code, out, _ = call("check", table, "--top-k", "1")
    assert (code, out.replace(f"  note: keys were {note}\n", "")) == (before[0], before[1])
    assert note in out
    assert note in call("snapshot", table)[2]
    given = call("check", table, "--map", rule, "--top-k", "1")
    remembered = call("check", table, "--remembered")
    assert given[1] + f"  note: keys were {note}\n" == remembered[1]
    assert "at step 300" in given[1]
    k = "k = 1 is remembered for the screen: pass --top-k 1 or --remembered"
    assert k in call("check", table, "--map", rule)[1]
    assert call("snapshot", table, "--remembered")[0] == 0


@pytest.mark.parametrize("confirmed", [False, True])
def test_unconfirmed_shares_are_never_critical(call: Call, tmp_path: Path, confirmed: bool) -> None:
    healthy, dead = [0.26, 0.24, 0.27, 0.23], [1.0, 0.0, 0.0, 0.0]
    rows = [
        {f"moe/{layer}/expert_{e}_load": x for layer in "12" for e, x in enumerate(healthy)}
        | {f"moe/2/expert_{e}_load": x for e, x in enumerate(healthy if step < 200 else dead)}
        | {"step": step}
        for step in range(1, 600)
    ]
    table = tmp_path / "run.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pattern = r"share=moe/(?P<layer>\d+)/expert_(?P<expert>\d+)_load"
    code, out, _ = call("check", table, "--top-k", "1", *(["--map", pattern] if confirmed else []))
    assert code == (2 if confirmed else 1), out
    assert ("without asking; confirm with --map 'share=moe/(?P<layer>" in out) is not confirmed


def test_the_sources_are_listed(call: Call) -> None:
    code, text, _ = call("sources")
    assert code == 0
    for name in FORMATS:
        assert f"\n{name} " in f"\n{text}"
    assert {"wandb", "tensorboard", "sglang", "megatron", "imatrix"} <= set(FORMATS)


def test_coverage_reads_the_counts_of_an_importance_matrix(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    shutil.copy(GOLDEN / "imatrix.gguf", path)
    os.utime(path, (1e9, 1e9))
    code, out, _ = call("coverage", path, "--json")
    assert code == 1  # a calibration of 192 tokens covers nothing
    for layer in json.loads(out)["layers"]:
        assert sum(expert["tokens"] for expert in layer["experts"]) == 192 * layer["top_k"]
        assert all(expert["tokens"] < 1000 for expert in layer["experts"])


def test_check_takes_the_newest_run_in_which_a_router_is_known(call: Call, tmp_path: Path) -> None:
    for age, (name, key) in enumerate(
        (("new", "mix/{}"), ("old", "router/tokens_per_expert/1/{}"))
    ):
        path = tmp_path / name / f"run-{name}.wandb"
        path.parent.mkdir()
        rows = [{key.format(e): 10 + (e + step) % 3 for e in range(4)} for step in range(9)]
        path.write_bytes(wb.log([wb.history(row, step) for step, row in enumerate(rows)]))
        os.utime(path, (1e9 - age, 1e9 - age))
    _, out, err = call("check", tmp_path)
    assert "run-new: skipped, no reading of a router is known in it" in err
    assert out.startswith("run-old: ")
