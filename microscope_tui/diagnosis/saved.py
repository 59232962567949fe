"""Saves the state of a judgement, so that a resumed training continues it.

msgpack of typed structs: nothing in it can execute, and foreign bytes are refused with a reason.
After a restore the same records give the same episodes as in one uninterrupted pass.
"""

import msgspec

from microscope_tui.diagnosis.context import ANYTHING, Criteria
from microscope_tui.diagnosis.engine import Diagnosis
from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.rules.base import Track
from microscope_tui.diagnosis.signals import Trail
from microscope_tui.runlog import RouterInfo, RunRecord

STATE_VERSION = 3
_OWN = ("last_step", "gaps", "restarted", "warm_until", "checkpoints", "judged_since", "too_few")
"""Attributes that are saved as they are."""


class BadState(ValueError):
    """The bytes are not a saved state of this run; the message says why."""


class _Saved(msgspec.Struct):
    version: int
    routers: tuple[RouterInfo, ...]
    last_step: int
    gaps: list[int]
    restarted: bool
    warm_until: int
    checkpoints: list[int]
    episodes: list[Episode]
    tracks: dict[str, dict[int, Track]]
    memories: dict[str, bytes]
    past: Trail | None = None
    """Missing in states of older versions."""
    judged_since: int | None = None
    seen: list[str] = []
    """Sorted: the order of a set differs between processes, and equal states are equal bytes."""
    too_few: str = ""


def save(diagnosis: Diagnosis) -> bytes:
    """The state of ``diagnosis`` after the last record it has seen."""
    encode = msgspec.msgpack.encode
    return encode(
        _Saved(
            version=STATE_VERSION,
            routers=diagnosis.run.routers,
            episodes=diagnosis.episodes,
            tracks={rule.name: rule.tracks for rule in diagnosis.rules},
            memories={rule.name: encode(rule.memory) for rule in diagnosis.rules},
            past=diagnosis.ledger.past,
            seen=sorted(diagnosis.seen),
            **{name: getattr(diagnosis, name) for name in _OWN},
        )
    )


def restore(data: bytes, run: RunRecord, criteria: Criteria = ANYTHING) -> Diagnosis:
    """Restore the judgement that ``save`` wrote; continue with the next record of ``run``.

    Raises:
        BadState: damaged, of another version, or of a model with other routers.
    """
    decode = msgspec.msgpack.decode
    try:
        saved = decode(data, type=_Saved)
        if saved.version != STATE_VERSION:
            raise BadState(f"the state has version {saved.version}, this is {STATE_VERSION}")
        if saved.routers != run.routers:
            raise BadState(
                f"the state is of {len(saved.routers)} other routers than the {len(run.routers)} "
                "of this run: judge it from its first step instead"
            )
        diagnosis = Diagnosis(run, criteria)
        for rule in diagnosis.rules:
            if rule.name in saved.memories:
                rule.memory = decode(saved.memories[rule.name], type=type(rule.memory))
                rule.tracks = saved.tracks.get(rule.name, {})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadState(f"no state of a judgement: {error}") from None
    for name in _OWN:
        setattr(diagnosis, name, getattr(saved, name))
    diagnosis.seen = set(saved.seen)
    diagnosis.ledger.past = saved.past or diagnosis.ledger.past
    # Episodes of rules that are ignored now would never end.
    judged = {rule.name for rule in diagnosis.rules}
    diagnosis.ledger.episodes = [e for e in saved.episodes if e.rule in judged]
    diagnosis.ledger.resume()
    for rule in diagnosis.rules:
        running = diagnosis.ledger.running_of(rule.name)
        diagnosis.keep_looking(rule, [e for e in running if e.router_index not in rule.tracks])
    diagnosis.adapt()
    return diagnosis
