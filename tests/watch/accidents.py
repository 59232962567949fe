"""A run log under everything that may happen to it, and a plain reading of what it then says."""

import json
import os
import time
from pathlib import Path
from typing import Any

OPERATIONS = ["steps", "steps", "steps", "gap", "go back", "repeat", "resume", "header again"]
OPERATIONS += ["other model", "event", "sick", "tear", "finish", "cut off", "garbage"]
OPERATIONS += ["truncate", "truncate lines", "replace", "same size", "recreate", "delete", "rest"]
OPERATIONS += ["look", "look", "look", "look at all"]

TOKENS = 64


class Log:
    """One log. Every step that is ever written has a loss of its own, by which it is known."""

    def __init__(self, path: Path, usual_steps: int = 12) -> None:
        self.path = path
        self._usual_steps = usual_steps
        self._loss = 1_000_000
        self._step = 0
        self._routers = 2
        self._is_sick = False
        self._torn = b""
        self._append(self._header())

    def happens(self, name: str, size: int) -> None:
        """Let one thing of ``OPERATIONS`` happen; ``size`` says how much of it."""
        getattr(self, "_" + name.replace(" ", "_"))(size)

    def finish_story(self) -> None:
        if not self.path.exists():
            self._append(self._header())
        self._rest(0)

    def _append(self, *records: Any) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(encoded(record) for record in records))

    def _header(self, **changes: Any) -> dict[str, Any]:
        self._loss += 1
        layers = list(range(self._routers))
        model = {"name": "m", "layers": layers, "num_experts": 4, "top_k": 1}
        record = {"kind": "run", "format_version": 1, "run": "r", "time": float(self._loss)}
        return record | {"planned_steps": 9000, "model": model} | changes

    def _record(self, *, with_counts: bool = True) -> dict[str, Any]:
        self._loss += 1
        record: dict[str, Any] = {"kind": "step", "step": self._step, "loss": float(self._loss)}
        record |= {"tokens": TOKENS, "step_time_s": 0.5}
        drops = [0.5 if self._is_sick else 0.0] * self._routers
        record["router"] = {
            "effective_experts": [1.0 + (self._loss % 41) / 16] * self._routers,
            "drop_rate": drops,
            "dead_experts": [0] * self._routers,
            "max_load": [1.0] * self._routers,
        }
        if with_counts:
            row = [128, 0, 0, 0] if self._is_sick else [10, 20, 16, 18]
            record["tokens_per_expert"] = [row] * self._routers
        return record

    def _write_steps(self, count: int, counts_every: int = 1) -> None:
        for _ in range(count):
            self._step += 1
            self._append(self._record(with_counts=self._step % counts_every == 0))

    def _steps(self, size: int) -> None:
        self._write_steps(1 + size % self._usual_steps, 1 if size < 500 else 3)

    def _gap(self, size: int) -> None:
        self._step += size % 7
        self._write_steps(1)

    def _go_back(self, size: int) -> None:
        self._step = max(0, self._step - size % self._usual_steps)
        self._write_steps(1)

    def _repeat(self, size: int) -> None:
        self._step = max(1, self._step)
        self._append(self._record())

    def _resume(self, size: int) -> None:
        self._step = max(0, self._step - size % self._usual_steps)
        self._append(self._header(resumed_at_step=self._step + 1))
        self._step += size % 3  # its first steps may be missing

    def _header_again(self, size: int) -> None:
        self._append(self._header())

    def _other_model(self, size: int) -> None:
        self._routers = 1 + size % 3
        self._append(self._header(resumed_at_step=self._step + 1 if size % 2 else None))

    def _event(self, size: int) -> None:
        name = ["eval", "checkpoint", "lost_records", "end", "other"][size % 5]
        record = {"kind": "event", "event": name, "step": self._step, "reason": "finished"}
        self._append(record | {"values": {"loss": 1.0, "count": 2}})

    def _sick(self, size: int) -> None:
        self._is_sick = not self._is_sick

    def _tear(self, size: int) -> None:
        self._step += 1
        line = encoded(self._record())
        cut = 1 + size * (len(line) - 1) // 1000
        with self.path.open("ab") as file:
            file.write(line[:cut])
        self._torn = line[cut:]

    def _finish(self, size: int) -> None:
        with self.path.open("ab") as file:
            file.write(self._torn)
        self._torn = b""

    def _cut_off(self, size: int) -> None:
        if self.path.exists():
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)

    def _garbage(self, size: int) -> None:
        self._append(
            [b'{"kind":"st\n', b"\0" * 40 + b"\n", b"\n", b"[1]\n", b"\xff\xfe\n"][size % 5]
        )

    def _truncate(self, size: int) -> None:
        if self.path.exists():
            os.truncate(self.path, self.path.stat().st_size * size // 999)

    def _truncate_lines(self, size: int) -> None:
        if self.path.exists():
            cut = self.path.stat().st_size * size // 999
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n", 0, cut) + 1)

    def _replace(self, size: int) -> None:
        other, path = Log(self.path.with_suffix(".new")), self.path
        other._loss, other._routers = self._loss + 1, 1 + size % 2
        other._write_steps(size % 20)
        other.path.replace(path)
        self._loss, self._step, self._routers = other._loss, other._step, other._routers

    def _same_size(self, size: int) -> None:
        if not self.path.exists():
            return
        fresh = self.path.with_suffix(".new")
        with fresh.open("wb") as file:
            for line in self.path.read_bytes().splitlines(keepends=True):
                self._loss += 1
                at = line.find(b'"loss":1') + len(b'"loss":')
                known = at > len(b'"loss":') and line[at + 7 : at + 9] == b".0"
                file.write(line[:at] + b"%d" % self._loss + line[at + 7 :] if known else line)
        fresh.replace(self.path)

    def _delete(self, size: int) -> None:
        self.path.unlink(missing_ok=True)

    def _recreate(self, size: int) -> None:
        self._delete(0)
        self._append(self._header())
        self._step = 0
        self._write_steps(size % 20)

    def _rest(self, size: int) -> None:
        if self.path.exists():
            then = time.time() - 60
            os.utime(self.path, (then, then))


def encoded(record: Any) -> bytes:
    if isinstance(record, bytes):
        return record
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


class Truth:
    """What a file says, read by the letter of the format with no thought of speed or size."""

    def __init__(self, data: bytes) -> None:
        self.routers: tuple[int, int] | None = None
        """How many, and how many experts a token chooses."""
        self.kept: dict[int, tuple[int, float]] = {}
        """Offset and loss of every step that still holds."""
        self.counted: set[int] = set()
        self.written: dict[int, tuple[int, float]] = {}
        """Step and loss by offset, the superseded ones too."""
        self.restarts: list[int] = []
        self.last = 0
        self.latest: tuple[int, float] | None = None
        offset = 0
        for line in data.splitlines(keepends=True):
            record = parsed(line)
            if record.get("kind") == "run":
                self._take_run(record)
            elif record.get("kind") == "step":
                self._take_step(record, offset)
            offset += len(line)

    def _take_run(self, record: dict[str, Any]) -> None:
        routers, resumed = (len(record["model"]["layers"]), 1), record.get("resumed_at_step")
        if routers != self.routers:
            self.kept, self.counted, self.restarts, self.last = {}, set(), [], 0
            self.latest = None
        elif resumed is not None:
            self._restart(max(1, min(resumed, self.last + 1)))
        self.routers = routers

    def _take_step(self, record: dict[str, Any], offset: int) -> None:
        rows = record.get("tokens_per_expert")
        if self.routers is None and rows:
            self.routers = (len(rows), sum(rows[0]) // record["tokens"])
        step, loss = record["step"], record["loss"]
        self.written[offset] = (step, loss)
        if self.routers is None:
            return
        if self.latest is not None and self.latest[0] == step <= self.last:
            return
        if step <= self.last:
            self._restart(step)
        self.kept[step], self.last, self.latest = (offset, loss), step, (step, loss)
        if "tokens_per_expert" in record:
            self.counted.add(step)

    def _restart(self, step: int) -> None:
        self.kept = {at: kept for at, kept in self.kept.items() if at < step}
        self.counted = {at for at in self.counted if at < step}
        self.restarts = [at for at in self.restarts if at < step] + [step]
        self.last = step - 1


def parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.lstrip(b"\0").decode("utf-8", "replace"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
