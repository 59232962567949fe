"""What the unknown keys of another tool's run may be, and the ``--map`` that shows them.

Keys that differ only in numbers share a shape: ``moe/layer_N/expert_M_load``. A shape with two
numbers is a matrix if every layer has all experts from 0 on. Which number is the layer follows from
the sums, which are the same in every layer, then from the words before the numbers, then from their
ranges. Values distinguish counts, shares and biases.
"""

import difflib
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import msgspec
from msgspec.structs import replace

from microscope_tui.runlog import plural, safe_text
from microscope_tui.sources.keys import (
    MAX_KEY_CHARACTERS,
    MAX_KEYS,
    NOT_READ,
    STEP_NAMES,
    TIME_NAMES,
    Keys,
    Rule,
    Target,
    rules_of,
)
from microscope_tui.sources.reader import RowReader, SourceRequest, Unreadable

SURVEYED_BYTES = 8 << 20
"""How much of a run is read for its keys."""
_MOST_NUMBERS = 1 << 20
_LEAST_STEPS = 3
"""Steps with a whole matrix before it is used without asking."""
_OFF = 0.01
"""How far the sums of layers may be apart: loggers round shares to three digits."""
_WRITERS = {
    "wandb": "W&B run",
    "tensorboard": "TensorBoard run",
    "trackio": "Trackio run",
    "mlflow": "MLflow run",
    "jsonl": "JSON lines",
    "csv": "table",
}
_KINDS = {"share": "shares", "tokens_per_expert": "counts", "expert_bias": "biases"}
_LETTERS = {"layer": "N", "expert": "M"}
_PARTS_OF_OBJECTS = re.compile(r"(?:/\d+|\.[^./]*)$")
_MOST_DIGITS = 9
_DIGITS = re.compile(r"(\d+)")
_LAST_WORD = re.compile(r"([A-Za-z]*)[^A-Za-z]*$")
_WORDS = {
    **dict.fromkeys(("layer", "layers", "l", "lyr", "block", "blocks", "blk", "h"), "layer"),
    **dict.fromkeys(("expert", "experts", "exp", "e", "ep", "ex"), "expert"),
}
_OF_ROUTERS = re.compile(r"expert|router|moe", re.IGNORECASE)
_LOAD = re.compile(
    r"load|usage|util|count|tokens|freq|frac|share|assign|dispatch|routed|select|hits|percent|pct",
    re.IGNORECASE,
)
_LOADS = [*_LOAD.pattern.split("|"), ""]  # of two that fit, the one with the earlier word is meant
_BEFORE = {"layer": {"", "moe", "router", "mlp", "ffn"}, "expert": set(_LOADS)}  # no task, no rank
_NO_LOAD = re.compile(
    r"prob|score|weight|logit|gate|grad|norm|loss|import|time|rank|device|gpu|head|hist|bin|bucket"
    r"|class|node|stage|slot|quantile",
    re.IGNORECASE,
)
_Series = Mapping[int, float]


class _EveryKey(Keys):
    """Every key is its own target: a reader with it yields all numbers by their names."""

    def __missing__(self, key: str) -> Target | None:
        if (
            len(key) > MAX_KEY_CHARACTERS
            or key in STEP_NAMES
            or key in TIME_NAMES
            or key[:1] in ("", "_")
        ):
            return None
        target = Target(key)
        if len(self) < MAX_KEYS:
            self[key] = target
        return target


class Survey(msgspec.Struct):
    """All numbers at the beginning of a run."""

    values: dict[str, dict[int, float]] = msgspec.field(default_factory=dict)
    """By key and step."""
    steps: set[int] = msgspec.field(default_factory=set)
    whole: bool = False
    """Whether that is all of the run."""
    keys: Keys = msgspec.field(default_factory=Keys)

    @property
    def kinds(self) -> str:
        """How many keys there are of each kind, in words."""
        objects = self.keys.objects
        outer = (_PARTS_OF_OBJECTS.sub("", key) for key in self.values)
        numbers = sum(name not in objects for name in outer)
        if not objects:
            return plural(numbers, "key")
        return _by_kind(Counter(number=numbers) + Counter(objects.values()))


class Proposal(msgspec.Struct, frozen=True):
    """One way to read unknown keys."""

    shape: str
    """The keys of the loads: ``moe/layer_N/expert_M_load``."""
    maps: tuple[str, ...]
    """``QUANTITY=REGEX``, as given with ``--map``: the loads, and biases if there are any."""
    holds: str
    """How many keys, and which values."""
    certain: bool
    """Whether it may be used without asking."""

    def applied(self, request: SourceRequest) -> SourceRequest:
        """``request`` with these rules before those that were confirmed so far."""
        return replace(request, confirmed=(*rules_of(self.maps), *request.confirmed))

    @property
    def options(self) -> list[str]:
        """The options of a command that apply it: ``--map``, ``QUANTITY=REGEX``, and so on."""
        return [word for pair in self.maps for word in ("--map", pair)]


class _Matrix(msgspec.Struct, frozen=True):
    """Keys that differ in the number of the layer, of the expert, or both."""

    texts: Sequence[str]
    """What is between the numbers."""
    keys: Mapping[tuple[str, ...], str]
    """By the numbers, as they are written."""
    columns: Mapping[int, str]
    """Which of the numbers is the layer, and which the expert."""
    quantity: str
    layers: int
    low: float
    high: float
    sums: Sequence[Sequence[float]] = ()
    """Of all layers, for every step that has all numbers; none for biases."""
    clear: bool = True
    """Whether layer and expert can be distinguished."""

    @property
    def right(self) -> bool:
        return bool(self.sums) and all(map(_agree, self.sums))

    @property
    def total(self) -> float:
        """The sum of a layer, if it is the same in every step; else 0."""
        every = [total for of_step in self.sums for total in of_step]
        return every[0] if self.right and _agree(every) else 0.0

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    @property
    def is_named(self) -> bool:
        return bool(_LOAD.search(self.text)) and not _NO_LOAD.search(self.text)

    @property
    def may_be_loads(self) -> bool:
        """Whether its sums or its words are those of loads."""
        return self.quantity != "expert_bias" and (self.right or self.is_named)

    @property
    def experts(self) -> int:
        return len(self.keys) // self.layers

    @property
    def holds(self) -> str:
        named = self.columns.values()
        letters = [f"{one} the {name}" for name, one in _LETTERS.items() if name in named]
        values = f"values {_number(self.low)} to {_number(self.high)}: {_KINDS[self.quantity]}"
        return f"{' and '.join(letters)}, {len(self.keys):,} keys, {values}"

    def written(self, *, as_pattern: bool) -> str:
        """Its keys in one line, as a regular expression or for people."""
        numbers = next(iter(self.keys))
        parts = []
        for at, text in enumerate(self.texts):
            parts.append(re.escape(text) if as_pattern else text)
            name = self.columns.get(at)
            if name:
                parts.append(rf"(?P<{name}>\d+)" if as_pattern else _LETTERS[name])
            elif at < len(numbers):
                parts.append(numbers[at])
        return "".join(parts)


def survey(source: RowReader) -> Survey:
    """Read the beginning of ``source`` again, with all of its keys, whatever they are called.

    Never raises: damage ends the survey.
    """
    reader = source.again(_EveryKey())
    found = Survey(keys=reader.keys)
    numbers = 0
    with suppress(Unreadable, OSError):  # what comes before is used; reading the run reports it
        while not found.whole and reader.offset < SURVEYED_BYTES and numbers < _MOST_NUMBERS:
            for row in reader.read().rows:
                found.steps.add(row.step)
                numbers += len(row.values)
                for target, value in row.values:
                    found.values.setdefault(target.quantity, {})[row.step] = value
            found.whole = reader.exhausted
    return found


def propose(found: Survey) -> Proposal | None:
    """What the keys are most likely; ``None`` where nothing looks like loads of experts."""
    shapes: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
    for key in found.values:
        parts = _DIGITS.split(key)
        shapes.setdefault(tuple(parts[::2]), {})[tuple(parts[1::2])] = key
    every = (_matrix(texts, keys, found.values) for texts, keys in shapes.items())
    matrices = [matrix for matrix in every if matrix is not None]
    biases = [matrix for matrix in matrices if matrix.quantity == "expert_bias"]
    loads = [matrix for matrix in matrices if matrix.may_be_loads]
    if not loads:
        return None
    best, *others = sorted(loads, key=_unlikely)
    mapped = [best, *[bias for bias in biases if bias.experts == best.experts][:1]]
    steps = min(len(found.values[key]) for key in best.keys.values())
    is_alone = not any(other.right for other in others)
    return Proposal(
        shape=best.written(as_pattern=False),
        maps=tuple(f"{one.quantity}={one.written(as_pattern=True)}" for one in mapped),
        holds=best.holds,
        certain=is_alone and _is_certain(best, steps),
    )


def _unlikely(one: _Matrix) -> tuple[object, ...]:
    """Sorts matrices, in any order of the keys: right sums, a matrix before the mean of its layers,
    words for the loads of experts, counts before shares."""
    text = one.text.lower()
    place = next(at for at, word in enumerate(_LOADS) if word in text)
    words = bool(_NO_LOAD.search(text)), not _OF_ROUTERS.search(text)
    return not one.right, one.layers == 1, *words, one.quantity == "share", place, text


def _matrix(
    texts: Sequence[str], keys: Mapping[tuple[str, ...], str], values: Mapping[str, _Series]
) -> _Matrix | None:
    """By the order of layer and expert that fits best."""
    columns = [len(set(column)) for column in zip(*keys, strict=True)]
    varying = [at for at, different in enumerate(columns) if different > 1]
    words = [_WORDS.get(_word(texts[at]), "") for at in varying]
    if words == ["expert"]:
        return _as_matrix(texts, keys, {varying[0]: "expert"}, values)
    if len(varying) != 2:
        return None
    found = []
    for names in (("layer", "expert"), ("expert", "layer")):
        one = _as_matrix(texts, keys, dict(zip(varying, names, strict=True)), values)
        if one is not None:
            fits = [word == name for word, name in zip(words, names, strict=True) if word]
            named = 2 * sum(fits) - len(fits)
            more = columns[varying[names.index("expert")]]
            found.append((one.right, named, more, one))
    if not found:
        return None
    *_, best = max(found, key=lambda one: one[:3])
    return replace(best, clear=len(found) == 1 or found[0][:2] != found[1][:2])


def _word(text: str) -> str:
    return str(_LAST_WORD.findall(text)[0]).lower()


def _as_matrix(
    texts: Sequence[str],
    keys: Mapping[tuple[str, ...], str],
    columns: Mapping[int, str],
    values: Mapping[str, _Series],
) -> _Matrix | None:
    """The keys as a matrix; ``None`` if a layer lacks an expert, or the values are of no kind."""
    rows = _rows(keys, columns, values)
    if rows is None:
        return None
    every = [v for key in keys.values() for v in values[key].values() if math.isfinite(v)]
    low = min(every, default=0.0)
    high = max(every, default=0.0)
    if "bias" in " ".join(texts).lower():
        return _Matrix(texts, keys, columns, "expert_bias", len(rows), low, high)
    if low < 0 or high == 0 or set(every) <= {0.0, 1.0}:
        return None
    counts = high > 1 and all(value.is_integer() for value in every)
    quantity = "tokens_per_expert" if counts else "share"
    return _Matrix(texts, keys, columns, quantity, len(rows), low, high, _sums(rows))


def _rows(
    keys: Mapping[tuple[str, ...], str], columns: Mapping[int, str], values: Mapping[str, _Series]
) -> Mapping[int, Mapping[int, _Series]] | None:
    at = {name: column for column, name in columns.items()}
    rows: dict[int, dict[int, _Series]] = {}
    for numbers, key in keys.items():
        if any(len(numbers[column]) > _MOST_DIGITS for column in columns):
            return None
        layer = int(numbers[at["layer"]]) if "layer" in at else 0
        rows.setdefault(layer, {})[int(numbers[at["expert"]])] = values[key]
    size = min(map(len, rows.values()))
    if size < 2 or any(row.keys() != set(range(size)) for row in rows.values()):
        return None
    return rows


def _sums(rows: Mapping[int, Mapping[int, _Series]]) -> list[list[float]]:
    """Of all layers, for every step that has all numbers."""
    first, *others = [one for row in rows.values() for one in row.values()]
    steps = sorted(set(first).intersection(*others))
    return [[sum(x[step] for x in row.values()) for row in rows.values()] for step in steps]


def _agree(totals: Sequence[float]) -> bool:
    return min(totals) > 0 and max(totals) - min(totals) <= _OFF * max(totals)


def _near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= _OFF * wanted


def _is_certain(best: _Matrix, steps: int) -> bool:
    """Whether it is so like the loads of experts that it may be used without asking."""
    usual = (*range(1, min(best.experts, 17)), best.experts, 100)  # shares, load ÷ mean, percent
    counts = best.quantity == "tokens_per_expert" and best.total > 0
    sums = (counts or any(_near(best.total, one) for one in usual)) and best.low < best.high
    words = [(name, _word(best.texts[at])) for at, name in best.columns.items()]
    clear = all(word in _BEFORE[name] or _WORDS.get(word) == name for name, word in words)
    named = best.is_named and _OF_ROUTERS.search(best.text) is not None
    return bool(
        named
        and clear
        and best.clear
        and best.right
        and sums
        and best.layers > 1
        and steps >= _LEAST_STEPS
    )


def described(
    found: Survey, proposal: Proposal | None, source: RowReader, name: str, asked: SourceRequest
) -> str:
    """What a run holds instead of readings of routers, and what to do.

    Args:
        found: The keys and values at its beginning.
        proposal: A way to read them; ``None`` if none is known.
        source: Names the file and the run.
        name: Of its format.
        asked: The user's mapping and ``top_k``, which the command shown repeats.
    """
    path = f"{source.path}#{source.run}" if source.run else str(source.path)
    run = source.name or source.run or source.path.name
    count = len(found.steps)
    where = "" if found.whole else f" in its first {SURVEYED_BYTES >> 20} MB"
    steps = f"{plural(count, 'step')}{where}"
    none = _no_match(asked.rules[0], found.values) if asked.rules else "none known as a router"
    text = f"{_WRITERS.get(name, name)} {run}, {steps}, {found.kinds}, {none}"
    if proposal is None:
        names = ", ".join(list(found.values)[:4]) + (" …" if len(found.values) > 4 else "")
        some = "" if asked.rules or not names else f" ({names})"
        some = "; ".join([some, *_not_read(found.keys)])
        return safe_text(f"{text}{some}. --map QUANTITY=REGEX names the keys to use", 600)
    words = ["moe-microscope", path, *proposal.options]
    words += ["--top-k", str(asked.top_k)] if asked.top_k else []
    needs = "" if asked.top_k else "; c needs --top-k, the experts per token"
    text += f". Looks like: {proposal.shape} ({proposal.holds}{needs})"
    return safe_text(text, 600) + safe_text(f". Show it with: {shlex.join(words)}", 8000)


def unmatched(keys: Keys) -> str:
    """What is wrong with the rules of the user, and which histograms and tables are not used."""
    found = [_no_match(rule, keys) for rule in keys.unmatched[:2]]
    if keys.doubled:
        found.append(
            f"--map takes {' and '.join(keys.doubled)} for the same number: map one of them"
        )
    others = [name for name in keys.objects if not keys.get(f"{name}/0")]
    if others:
        found.append(f"not used: {_by_kind(Counter(map(keys.objects.__getitem__, others)))}")
    return safe_text("; ".join([*found, *_not_read(keys)]), 600)


def _not_read(keys: Keys) -> list[str]:
    """What to log instead of histograms and tables, with one of their keys."""
    for name, kind in keys.objects.items():
        if kind in NOT_READ and _OF_ROUTERS.search(name):
            how = "log the counts as a list (TensorBoard: add_tensor)"
            return [f"{name}: a {kind} is not read, {how}"]
    return []


def _by_kind(kinds: Mapping[str, int]) -> str:
    return ", ".join(plural(count, kind) for kind, count in kinds.items())


def _no_match(rule: Rule, keys: Iterable[str]) -> str:
    literal = re.sub(r"\(\?P<\w+>[^)]*\)", "N", rule.pattern.pattern).replace("\\", "")
    near = difflib.get_close_matches(literal, {_DIGITS.sub("N", key) for key in keys}, 3, 0.0)
    return f"--map '{rule.written}' matches no key; the nearest are {', '.join(near)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:.2g}".replace("0.", ".", 1)
