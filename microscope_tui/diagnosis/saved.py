"""Saves the state of a judgement, so that a resumed training continues it.

msgpack of typed structs: nothing in it can execute, and foreign bytes are refused with a reason.
After a restore the same records give the same episodes as in one uninterrupted pass.
"""

import msgspec

from microscope_tui.diagnosis.context import ANYTHING, Criteria
from microscope_tui.diagnosis.engine import Diagnosis
from microscope_tui.diagnosis.episodes import Episode
from microscope_tui.diagnosis.ledger import Track
from microscope_tui.diagnosis.signals import Trail
from microscope_tui.runlog import RouterInfo, RunRecord

STATE_VERSION = 3


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
            last_step=diagnosis.last_step,
            gaps=diagnosis.gaps,
            restarted=diagnosis.restarted,
            warm_until=diagnosis.warm_until,
            checkpoints=diagnosis.checkpoints,
            episodes=diagnosis.episodes,
            tracks=diagnosis.tracks,
            past=diagnosis.ledger.past,
            memories={rule.name: encode(rule.memory) for rule in diagnosis.rules},
            judged_since=diagnosis.judged_since,
            seen=sorted(diagnosis.seen),
            too_few=diagnosis.too_few,
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
                diagnosis.tracks[rule.name] = saved.tracks.get(rule.name, {})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadState(f"no state of a judgement: {error}") from None
    diagnosis.last_step, diagnosis.warm_until = saved.last_step, saved.warm_until
    diagnosis.judged_since = saved.judged_since
    diagnosis.seen, diagnosis.too_few = set(saved.seen), saved.too_few
    diagnosis.checkpoints = saved.checkpoints
    diagnosis.gaps, diagnosis.restarted = saved.gaps, saved.restarted
    diagnosis.ledger.past = saved.past or diagnosis.ledger.past
    # Episodes of rules that are ignored now would never end.
    judged = {rule.name for rule in diagnosis.rules}
    diagnosis.ledger.episodes = [e for e in saved.episodes if e.rule in judged]
    diagnosis.ledger.resume()
    for rule in diagnosis.rules:
        tracks, running = diagnosis.tracks[rule.name], diagnosis.ledger.running_of(rule.name)
        diagnosis.keep_looking(rule, [e for e in running if e.router_index not in tracks])
    diagnosis.adapt()
    return diagnosis
