"""Every reader gets to the end of any log, whatever it contains."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.lines import Glyphs, snapshot_text
from microscope_tui.report import judge, verdict_json, verdict_text
from microscope_tui.runlog import RunFile
from microscope_tui.watch import RunWatch, pin, view_of

NUMBERS = [0, 1, -1, 2, 8, 10**400, -(10**30), 1e308, 1e-308, 1.5, 2**62, 2**63]
WORDS = ["NaN", "Infinity", "-Infinity", "x", "", "\x1b[2J", "日本語", None, True, False]
SUMMARIES = ["entropy", "effective_experts", "dead_experts", "drop_rate", "max_load"]


class Stranger:
    """Writes logs that are nearly right: the most dangerous kind."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._routers, self._experts = 3, 8
        self._step = 0

    def anything(self, depth: int = 0) -> Any:
        chance = self._random.random()
        if chance < 0.5 or depth > 3:
            return self._random.choice(NUMBERS + WORDS)
        if chance < 0.8:
            return [self.anything(depth + 1) for _ in range(self._random.choice([0, 1, 2, 3, 8]))]
        keys = ["layers", "num_experts", "top_k", "layer_names", "name", "method", "loss"]
        return {self._random.choice(keys): self.anything(depth + 1) for _ in range(3)}

    def header(self) -> dict[str, Any]:
        pick = self._random.choice
        self._routers, self._experts = pick([(3, 8), (2, 4), (1, 1), (0, 3), (2, 1)])
        record = {
            "kind": "run",
            "format_version": 1,
            "planned_steps": pick([100, None, 10, -4]),
            "resumed_at_step": pick([None, 1, self._step, -5, 10**20]),
            "model": {
                "layers": list(range(self._routers)),
                "num_experts": self._experts,
                "top_k": pick([1, 2, self._experts]),
            },
            "balance": {"method": pick(["bias", "aux", 3]), "bias_update_rate": pick([0.1, "x"])},
        }
        if self._random.random() < 0.3:
            record[pick(list(record)[2:])] = self.anything()
        return record

    def step(self) -> dict[str, Any]:
        pick = self._random.choice
        self._step = max(0, self._step + pick([1, 1, 1, 1, 1, 1, -2, 50]))
        rows = [
            [self._random.randrange(100) for _ in range(self._experts)]
            for _ in range(self._routers)
        ]
        values = [1.0, None, "NaN", 0.0, -3, 1e300, "Infinity", "-Infinity"]
        router = {name: [pick(values) for _ in range(self._routers)] for name in SUMMARIES}
        record = {"kind": "step", "step": self._step, "loss": pick([1.0, "NaN", 1e300])}
        record |= {"tokens": pick([50, 0, -5, 1e20]), "router": router, "tokens_per_expert": rows}
        if self._random.random() < 0.3:
            router[pick([*SUMMARIES, "tokens"])] = self.anything()
        if self._random.random() < 0.2:
            record[pick([*list(record)[1:], "expert_bias"])] = self.anything()
        return record

    def log(self) -> bytes:
        records: list[Any] = [self.header()]
        for _ in range(self._random.choice([5, 60, 150])):
            chance = self._random.random()
            if chance < 0.92:
                records.append(self.step())
            elif chance < 0.94:
                records.append(self.header())
            elif chance < 0.97:
                keys = self._random.sample(["event", "step", "time", "values", "reason"], 3)
                records.append({"kind": "event"} | {key: self.anything() for key in keys})
            else:
                records.append(self.anything())
        return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.mark.parametrize("seed", range(60))
def test_no_log_stops_the_reader_the_view_the_snapshot_or_the_verdict(
    tmp_path: Path, seed: int
) -> None:
    stranger = Stranger(seed)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(stranger.log())
    file = RunFile("r", path, 0.0)
    watch = RunWatch(file)
    while watch.advance(3000):
        view_of(watch, 5, 5)
    moment = pin(watch)
    with path.open("ab") as more:
        more.write(stranger.log())
    watch.read_all()
    view_of(watch, 20, 50, moment)
    for columns, glyphs in zip((20, 40, 80, 120), (*Glyphs, Glyphs.ASCII), strict=True):
        shown = snapshot_text(watch, columns, 12, glyphs)
        assert "\x1b" not in shown
    judgement = judge(file)
    json.dumps(verdict_json([judgement]), allow_nan=False)
    assert judgement.exit_code in (0, 1, 2, 3)
    assert "\x1b" not in verdict_text(judgement)


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 64 + b'{"kind":"step","step":2,"tokens":8,"tokens_per_expert":[[8,0]]}',
        b'{"kind":"step","step":2,"x":"\xff\xfe","tokens_per_expert":[[8,0]]}',
        b'{"kind":"step","step":2,"x":' + b"9" * 5000 + b',"tokens_per_expert":[[8,0]]}',
        b'{"kind":"step","step":2,"tokens_per_expert":[[' + b"9" * 5000 + b",0]]}",
        b'{"kind":"step","step":2,"tokens":1e-308,"tokens_per_expert":[[8,0]]}',
    ],
)
@pytest.mark.parametrize("with_header", [True, False])
def test_a_line_that_only_one_decoder_can_read_costs_its_counts_at_most(
    tmp_path: Path, line: bytes, with_header: bool
) -> None:
    header = b'{"kind":"run","format_version":1,"model":{"layers":[1],"num_experts":2,"top_k":1}}\n'
    good = b'{"kind":"step","step":3,"tokens":8,"tokens_per_expert":[[4,4]]}\n'
    path = tmp_path / "metrics.jsonl"
    path.write_bytes((header if with_header else b"") + line + b"\n" + good)
    watch = RunWatch(RunFile("r", path, 0.0))
    watch.read_all()
    assert view_of(watch).step == 3
    assert view_of(watch).layers[0].counts == [4, 4]


def test_a_model_without_routers_can_train_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = b"".join(b'{"kind":"step","step":%d,"loss":1.0}\n' % n for n in range(1, 9000))
    path.write_bytes(b'{"kind":"run","format_version":1,"model":{"layers":[]}}\n' + steps)
    watch = RunWatch(RunFile("r", path, 0.0))
    watch.read_all()
    assert view_of(watch).step == 8999
    assert judge(RunFile("r", path, 0.0)).exit_code == 3  # nothing measured is no all-clear


def test_another_format_version_stays_refused_however_long_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    step = b'{"kind":"step","step":%d,"tokens":8,"tokens_per_expert":[[4,4]]}\n'
    steps = b"".join(step % n for n in range(1, 9000))
    path.write_bytes(b'{"kind":"run","format_version":2,"model":{"layers":[1]}}\n' + steps)
    watch = RunWatch(RunFile("r", path, 0.0))
    while watch.advance(4096):
        assert "format_version is 2" in (watch.error or "")
    path.write_bytes(b'{"kind":"run","format_version":1,"model":{"layers":[1]}}\n' + step % 1)
    watch.read_all()
    assert watch.error is None
