"""Hostile logs by number: the same seed gives the same log, on every machine.

A log starts as a valid one of a few lines, healthy or sick, and is then spoilt: values inside its
records, whole records, and the bytes they are written in. Nearly right is the dangerous kind.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.hostile import poison

SUMMARIES = ("entropy", "mean_entropy", "effective_experts", "max_load", "dead_experts")
SUMMARIES += ("starved_experts", "drop_rate", "z_loss", "max_logit", "grad_norm", "tokens")
SUMMARIES += ("unrouted",)
SHAPES = [(1, 2, 1), (2, 4, 2), (3, 8, 2), (1, 1, 1), (2, 4, 4), (0, 3, 1), (5, 2, 1)]
STATES = ["healthy", "healthy", "collapsed", "dead", "dropping", "forced", "doubled", "nan"]

Record = dict[str, Any]


def hostile_log(seed: int) -> bytes:
    rng = random.Random(seed)
    if rng.random() < 0.02:
        return poison.noise(rng, 3000)
    lines = [poison.encoded(record) for record in spoilt_records(rng)]
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        at = rng.randrange(len(lines))
        lines[at] = rng.choice(LINE_SPOILERS)(rng, lines[at])
    log = b"\n".join(lines) + b"\n"
    for _ in range(rng.choice([0, 0, 0, 1, 1, 3])):
        log = rng.choice(BYTE_SPOILERS)(rng, log)
    return log


def spoilt_records(rng: random.Random) -> list[Any]:
    writer = Writer(rng)
    length = rng.choice([1, 2, 4, 6, 8, 12, 12, 20]) if rng.random() < 0.93 else 120
    records: list[Any] = [writer.header()] if rng.random() < 0.9 else []
    while len(records) < length + 1:
        chance = rng.random()
        if chance < 0.8:
            records.append(writer.step())
        elif chance < 0.9:
            records.append(writer.event())
        elif chance < 0.96:
            records.append(writer.another_header())
        else:
            records.append(poison.value(rng))
    for _ in range(rng.choice([0, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(records))
        if isinstance(records[at], dict):
            records[at] = rng.choice(RECORD_SPOILERS)(rng, records[at])
    return records


class Writer:
    """Writes valid records of one run, with the accidents that belong to a run's life."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._now, self._step, self._tokens = 1.7e9, rng.choice([0, 0, 0, 10, 999]), 64
        self._shape()

    def _shape(self) -> None:
        self._routers, self._experts, self._top_k = self._rng.choice(SHAPES)
        self._state = self._rng.choice(STATES)
        self._bias = self._rng.random() < 0.5

    def header(self, resumed_at_step: int | None = None) -> Record:
        rng, depths = self._rng, list(range(1, 1 + self._routers))
        model: Record = {"name": "m", "layers": depths, "top_k": self._top_k}
        model["num_experts"] = rng.choice([self._experts, [self._experts] * self._routers])
        if rng.random() < 0.6:
            model["layer_names"] = [f"L{depth}" for depth in depths]
        if rng.random() < 0.2:
            model["layer_names"] = [rng.choice(poison.TEXTS) for _ in depths]
        method = rng.choice(["bias", "aux", "none", "other"])
        return {
            "kind": "run",
            "format_version": 1,
            "run": rng.choice(["r", *poison.TEXTS]),
            "time": self._now,
            "planned_steps": rng.choice([100, 3, 10_000, None]),
            "resumed_at_step": resumed_at_step,
            "model": model,
            "balance": {
                **{"method": method, "update": "sign", "bias_update_rate": 0.001},
                "aux_weight": 0.01,
                "names": {"aux_weight": "router_aux_loss_coef", "bias_update_rate": "\x1b[2J"},
            },
            "source": {"writer": "w", "counts": rng.choice(["exact", "exact", "shares", "none"])},
        }

    def another_header(self) -> Record:
        rng = self._rng
        if rng.random() < 0.3:
            self._shape()
        back = max(1, self._step - rng.choice([0, 1, 2, 5, 50]) + 1)
        record = self.header(rng.choice([back, back, 1, None]))
        if rng.random() < 0.8:
            self._step = back - 1
        return record

    def step(self) -> Record:
        rng = self._rng
        self._step += rng.choices([1, 2, 0, -1, -5, 1000], [80, 5, 4, 4, 4, 3])[0]
        self._step = max(0, self._step)
        self._now += 1.0
        rows = [self._row() for _ in range(self._routers)]
        broken = math.nan if self._state == "nan" else 1.0
        record: Record = {"kind": "step", "step": self._step, "time": self._now, "loss": broken}
        record |= {"tokens": self._tokens, "step_time_s": 0.5, "tokens_per_s": 128.0}
        if rng.random() < 0.8:
            record["router"] = self._summary(rows, broken)
        if rng.random() < 0.8:
            if self._bias:
                record["expert_bias"] = [[0.01] * self._experts for _ in rows]
            record["tokens_per_expert"] = rows
        return record

    def _row(self) -> list[int]:
        total, row = self._tokens * self._top_k, [0] * self._experts
        if self._state == "collapsed":
            for expert in range(self._top_k):
                row[expert] = self._tokens
        elif self._state == "forced":
            row = [total // self._experts] * self._experts
        else:
            chosen = self._experts - (self._state == "dead" and self._experts > self._top_k)
            for at in range(8):
                row[self._rng.randrange(chosen)] += total // 8 + (total % 8 if at == 0 else 0)
        return [2 * count for count in row] if self._state == "doubled" else row

    def _summary(self, rows: Sequence[Sequence[int]], broken: float) -> Record:
        rng = self._rng
        known = [name for name in SUMMARIES if rng.random() < 0.6]
        summary: Record = {name: [rng.random() * broken for _ in rows] for name in known}
        summary["dead_experts"] = [sum(n == 0 for n in row) for row in rows]
        if self._state == "dropping":
            summary["drop_rate"] = [0.5 for _ in rows]
        if self._state == "collapsed":
            summary["effective_experts"] = [float(self._top_k) for _ in rows]
        if "tokens" in known:
            summary["tokens"] = [self._tokens for _ in rows]
        return summary

    def event(self) -> Record:
        rng = self._rng
        name = rng.choice(["eval", "checkpoint", "alert", "lint", "lost_records", "end", "else"])
        record = {"kind": "event", "step": self._step, "time": self._now, "event": name}
        if name in ("eval", "lost_records"):
            record["values"] = {"loss": 2.0, "count": rng.choice([1, 3, *poison.NUMBERS])}
        if name == "end":
            record["reason"] = rng.choice(["finished", "failed", "signal", *poison.TEXTS])
        return record


def _replaced(rng: random.Random, record: Record) -> Record:
    spoilt = dict(record)
    place: Any = spoilt
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return spoilt
        key = rng.choice(keys)
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            place[key] = inner.copy()
            place = place[key]
            continue
        place[key] = poison.value(rng)
        return spoilt


def _removed(rng: random.Random, record: Record) -> Record:
    gone = rng.choice([*record, ""])
    return {key: value for key, value in record.items() if key != gone}


def _renamed(rng: random.Random, record: Record) -> Record:
    old, new = rng.choice([*record, ""]), rng.choice(poison.KEYS + poison.TEXTS)
    return {new if key == old else key: value for key, value in record.items()}


def _resized(rng: random.Random, record: Record) -> Record:
    key = rng.choice(["tokens_per_expert", "expert_bias", "router", "model"])
    found = record.get(key)
    if isinstance(found, dict):
        lists = [name for name, value in found.items() if isinstance(value, list)]
        if not lists:
            return record
        name = rng.choice(lists)
        return record | {key: found | {name: _cut_or_grown(rng, found[name])}}
    if not isinstance(found, list):
        return record
    if found and isinstance(found[0], list) and rng.random() < 0.5:
        return record | {key: [_cut_or_grown(rng, found[0]), *found[1:]]}
    return record | {key: _cut_or_grown(rng, found)}


def _cut_or_grown(rng: random.Random, values: list[Any]) -> list[Any]:
    choice = rng.randrange(4)
    if choice == 0:
        return values[:-1]
    if choice == 1:
        return values + (values[-1:] or [poison.value(rng)])
    return [] if choice == 2 else values * rng.choice([2, 50])


def _duplicated_key(rng: random.Random, line: bytes) -> bytes:
    key = rng.choice(poison.KEYS).encode("utf-8", "replace")
    piece = b'"' + key + b'":' + poison.raw_value(rng)
    if rng.random() < 0.5:
        return line[:-1] + b"," + piece + line[-1:]
    return line[:1] + piece + b"," + line[1:]


def _raw_in_place(rng: random.Random, line: bytes) -> bytes:
    colons = [at for at, byte in enumerate(line[:2000]) if byte == 0x3A]
    if not colons:
        return poison.raw_value(rng)
    start = rng.choice(colons) + 1
    end = min((at for sign in b",}]" if (at := line.find(sign, start)) >= 0), default=len(line))
    return line[:start] + poison.raw_value(rng) + line[end:]


def _flipped(rng: random.Random, log: bytes) -> bytes:
    data = bytearray(log)
    for _ in range(rng.choice([1, 1, 3, 20])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _inserted(rng: random.Random, log: bytes) -> bytes:
    at = rng.randrange(len(log) + 1)
    piece = poison.noise(rng, 40) if rng.random() < 0.2 else rng.choice(poison.RAW_PIECES)
    return log[:at] + piece + log[at:]


def _cut_out(rng: random.Random, log: bytes) -> bytes:
    at = rng.randrange(len(log))
    return log[:at] + log[at + rng.choice([1, 5, 100]) :] or b"\n"


def _repeated(rng: random.Random, log: bytes) -> bytes:
    at = rng.randrange(len(log))
    piece = log[at : at + rng.choice([10, 200, 2000])]
    return log[:at] + piece * 2 + log[at:]


def _hole(rng: random.Random, log: bytes) -> bytes:
    """What a crash leaves: a stretch of NULs where bytes were."""
    at, length = rng.randrange(len(log)), rng.choice([1, 50, 700])
    return log[:at] + b"\0" * min(length, len(log) - at) + log[at + length :]


RECORD_SPOILERS: list[Callable[[random.Random, Record], Record]] = [
    *[_replaced] * 5, _removed, _renamed,
    lambda rng, record: dict(rng.sample(list(record.items()), len(record))),
    lambda rng, record: record | {rng.choice(poison.KEYS + poison.TEXTS): poison.value(rng)},
    _resized, _resized,
]  # fmt: skip
PADDING = [b" ", b"\t", b"\0\0", b"\xef\xbb\xbf", b"\r"]
LINE_SPOILERS: list[Callable[[random.Random, bytes], bytes]] = [
    _duplicated_key, _raw_in_place, _raw_in_place,
    lambda rng, line: poison.raw_value(rng),
    lambda rng, line: line + rng.choice([b"\n", b"", b" "]) + line,
    lambda rng, line: rng.choice(PADDING) + line + b" \r",
]  # fmt: skip
BYTE_SPOILERS: list[Callable[[random.Random, bytes], bytes]] = [
    _flipped, _inserted, _inserted, _cut_out,
    lambda rng, log: log[: rng.randrange(1, len(log) + 1)],
    lambda rng, log: log.rstrip(b"\n") or b"\n",
    _repeated, _hole,
]  # fmt: skip
