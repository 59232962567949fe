"""``mismatch`` as a program: two probes, and an engine beside a probe."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from microscope_tui.routing import RoutingWriter, Shape

Run = Callable[..., CompletedProcess[str]]
LAYERS, TOKENS, EXPERTS, K = 4, 500, 16, 2
Ids = list[list[list[int]]]


def write(folder: Path, ids: Ids, *, dtype: str = "fp32", first: int = 0) -> Path:
    """A probe with these choices: layer → token → experts; only its ``routing.bin``."""
    folder.mkdir()
    depths = tuple(range(1, LAYERS + 1))
    shape = Shape(depths, tuple(f"L{n}" for n in depths), EXPERTS, K, TOKENS)
    writer = RoutingWriter(folder / "routing.bin", shape, model="planted", dtype=dtype)
    tokens = range(first, first + TOKENS)
    writer.put_tokens(tokens, [b"a"] * TOKENS, [0] * TOKENS, [0] * TOKENS)
    for layer, rows in enumerate(ids):
        flat = [expert for row in rows for expert in row]
        margins = [0.001 + (token % 100) / 100 for token in range(TOKENS)]
        writer.put("ids", layer, 0, struct.pack(f"<{len(flat)}B", *flat))
        writer.put("margins", layer, 0, struct.pack(f"<{TOKENS}e", *margins))
    writer.finish()
    return folder


@pytest.fixture
def ids() -> Ids:
    rng = random.Random(0)
    return [[rng.sample(range(1, 15), K) for _ in range(TOKENS)] for _ in range(LAYERS)]


@pytest.fixture
def flipped(ids: Ids) -> Ids:
    """Expert 15 instead of the second choice, for every 100th token of L2: the small margins."""
    other = [[row[:] for row in rows] for rows in ids]
    for token in range(0, TOKENS, 100):
        other[1][token][1] = 15
    return other


def test_planted_flips_are_in_text_and_json(
    microscope: Run, tmp_path: Path, ids: Ids, flipped: Ids
) -> None:
    a, b = write(tmp_path / "a", ids), write(tmp_path / "b", flipped, dtype="bf16")
    done = microscope("mismatch", a, b / "routing.bin")
    assert (done.returncode, done.stderr) == (0, "")
    assert "planted, bf16" in done.stdout
    assert "0.25% of the choices of 500 tokens in 4 layers differ" in done.stdout  # 5 of 2,000
    assert "1.00% of the tokens" in done.stdout
    assert max(map(len, done.stdout.splitlines()[2:])) <= 80
    found = json.loads(microscope("mismatch", a, b, "--json").stdout)
    assert (found["choices"], found["choices_differing"]) == (LAYERS * TOKENS, 5)
    assert [layer["differing"] for layer in found["layers"]] == [0, 5, 0, 0]
    swaps = {(one["from"], one["to"]): one["times"] for one in found["layers"][1]["swaps"]}
    assert sum(swaps.values()) == 5
    assert set(swaps) == {(ids[1][token][1], 15) for token in range(0, TOKENS, 100)}
    assert found["margins"][0]["differing"] == 5


def test_the_largest_allowed_share_decides_the_exit_code(
    microscope: Run, tmp_path: Path, ids: Ids, flipped: Ids
) -> None:
    a, b = write(tmp_path / "a", ids), write(tmp_path / "b", flipped)
    assert microscope("mismatch", a, b, "--max-share", "0.0024").returncode == 1
    assert microscope("mismatch", a, b, "--max-share", "0.0025").returncode == 0
    assert microscope("mismatch", a, a, "--max-share", "0").returncode == 0


def test_an_engine_is_compared_with_a_probe_in_either_order(
    microscope: Run, tmp_path: Path, ids: Ids, flipped: Ids
) -> None:
    probe = write(tmp_path / "a", ids)
    rows = [[flipped[layer][token] for layer in range(LAYERS)] for token in range(TOKENS)]
    rows[-1] = [[0] * K] * LAYERS  # the last sampled token
    response = {"prompt_token_ids": list(range(9)), "token_ids": list(range(9, TOKENS))}
    (tmp_path / "engine.jsonl").write_text(json.dumps(response | {"routed_experts": rows}) + "\n")
    np.save(tmp_path / "engine.npy", np.array(rows, dtype=np.int32))
    for engine in ("engine.jsonl", "engine.npy"):
        there = json.loads(microscope("mismatch", probe, tmp_path / engine, "--json").stdout)
        back = json.loads(microscope("mismatch", tmp_path / engine, probe, "--json").stdout)
        assert there["tokens"] == TOKENS - 1
        assert there["choices_differing"] == back["choices_differing"] == 5
        turned = {(one["to"], one["from"]) for one in back["layers"][1]["swaps"]}
        assert {(one["from"], one["to"]) for one in there["layers"][1]["swaps"]} == turned
        assert (there["margins_of"], back["margins_of"]) == ("A", "B")
        assert there["margins"][0]["differing"] == 5


def test_swaps_of_two_engines_go_from_the_first_to_the_second(
    microscope: Run, tmp_path: Path, ids: Ids, flipped: Ids
) -> None:
    for name, choices in (("a.npy", ids), ("b.npy", flipped)):
        rows = [[choices[layer][token] for layer in range(LAYERS)] for token in range(TOKENS)]
        np.save(tmp_path / name, np.array(rows, dtype=np.int32))
    done = microscope("mismatch", tmp_path / "a.npy", tmp_path / "b.npy", "--json")
    swaps = json.loads(done.stdout)["layers"][1]["swaps"]
    assert {swap["to"] for swap in swaps} == {15}


def test_what_cannot_be_compared_says_the_first_difference(
    microscope: Run, tmp_path: Path, ids: Ids
) -> None:
    a, b = write(tmp_path / "a", ids), write(tmp_path / "b", ids, first=3)
    done = microscope("mismatch", a, b)
    assert (done.returncode, done.stdout) == (3, "")
    assert "token 0: id 0 in A, 3 in B" in done.stderr
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n')
    for path, why in (
        (tmp_path / "bad.jsonl", "no routed_experts"),
        (tmp_path, "no such file"),
        (tmp_path / "none.npy", "no such file"),
        (__file__, "MOEROUTE"),
    ):
        done = microscope("mismatch", a, path)
        assert (done.returncode, done.stdout) == (3, "")
        assert why in done.stderr


def test_a_share_above_one_is_a_usage_error(microscope: Run, tmp_path: Path) -> None:
    assert microscope("mismatch", tmp_path, tmp_path, "--max-share", "2").returncode == 64
    assert microscope("mismatch", tmp_path).returncode == 64


@pytest.fixture
def runs(
    tmp_path: Path, ids: Ids, flipped: Ids, make_header: Callable[..., object]
) -> tuple[Path, Path]:
    """Two probes with their logs."""
    model = {"layers": [1, 2, 3, 4], "layer_names": ["L1", "L2", "L3", "L4"]}
    found = []
    for name, choices in (("a", ids), ("b", flipped)):
        folder = write(tmp_path / name, choices)
        counts = [[TOKENS * K // EXPERTS] * EXPERTS for _ in range(LAYERS)]
        step = {"kind": "step", "step": 1, "loss": 2.0, "tokens_per_expert": counts}
        head = make_header(model=model | {"num_experts": EXPERTS}, profile="eval", run=name)
        log = "\n".join(map(json.dumps, (head, step)))
        (folder / "metrics.jsonl").write_text(log + "\n")
        found.append(folder)
    return found[0], found[1]


def test_the_screen_is_printed_against_another_run(
    microscope: Run, runs: tuple[Path, Path]
) -> None:
    a, b = runs
    place = ("snapshot", b, "--screen", "mismatch", "--against", a)
    text = microscope(*place, "--size", "80x24")
    assert (text.returncode, text.stderr) == (0, "")
    assert "0.25% of the choices" in text.stdout
    assert max(map(len, text.stdout.splitlines())) <= 80
    found = json.loads(microscope(*place, "--format", "json").stdout)
    assert found["choices_differing"] == 5
    assert microscope(*place, "--format", "svg").stdout.startswith("<svg")
    assert "Pin the run" in microscope(*place[:4]).stdout


def test_against_is_refused_where_nothing_is_compared(
    microscope: Run, runs: tuple[Path, Path]
) -> None:
    a, b = runs
    for screen, code, why in (("layer", 64, "compares nothing"), ("main", 64, "compares nothing")):
        done = microscope("snapshot", b, "--screen", screen, "--against", a)
        assert (done.returncode, done.stdout) == (code, "")
        assert why in done.stderr
    alone = microscope("snapshot", b, "--screen", "mismatch", "--format", "json")
    assert alone.returncode == 64
    assert "--against PATH" in alone.stderr
    (a / "routing.bin").unlink()
    gone = microscope("snapshot", b, "--screen", "mismatch", "--format", "json", "--against", a)
    assert (gone.returncode, "no probe there" in gone.stderr) == (3, True)
