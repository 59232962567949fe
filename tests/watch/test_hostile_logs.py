"""Whatever stands in a log, every reader of it gets through to the end."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.report.check import as_json, as_text, judge
from microscope_tui.report.glyphs import Glyphs
from microscope_tui.report.snapshot import snapshot_text
from microscope_tui.runlog.discover import RunFile
from microscope_tui.watch.run_watch import RunWatch
from microscope_tui.watch.view import pin, view_of

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
    json.dumps(as_json([judgement]), allow_nan=False)
    assert judgement.exit_code in (0, 1, 2, 3)
    assert "\x1b" not in as_text(judgement)
