"""Cause first: one pass over all episodes of a run finds what explains them, and the one remedy.

A proof comes before a suspicion: see the order in ``causes``. Each episode has one cause, so that
no report turns one setting in two directions. ``Changes`` notes while a run is judged at which
steps its data changed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import median_low

import msgspec
from msgspec.structs import replace

from microscope_tui.diagnosis.episodes import WHOLE_RUN, Episode, Finding, Reason, Severity
from microscope_tui.diagnosis.ledger import group
from microscope_tui.diagnosis.rules import RULES
from microscope_tui.diagnosis.rules.base import (
    LEAST_SWING,
    MOST_SWING,
    calm_down,
    ids_of,
    listed,
    number,
    place,
    ranks_of,
    setting,
)
from microscope_tui.diagnosis.rules.dead import EVEN, few_from_start
from microscope_tui.runlog import RunRecord

_GAP = 50
"""Largest gap between the last evidence of one episode and the onset of the next that it led to; a
dated onset may also precede the first sign of a divergence by this much."""
_REACH = 500
"""A sign of a divergence that lasts longer than this does not explain later onsets."""
_AFTER = 50
"""Steps after a restart or a change of the data within which an onset belongs to it."""
_WINDOW = 16
"""Steps by which onsets of one moment differ: windows date them."""
_UNEVEN_IF_NARROW = ("COLLAPSE", "ERODING", "BIAS_RUNAWAY", "OVERLOAD", "DROPS")
_UNEVEN = (*_UNEVEN_IF_NARROW, "DEAD", "STARVED")
"""Rules that fire where the load of a router is uneven, for whichever reason; on narrow data
some experts always rest."""
_PROVEN = {
    Reason.WRONG_SIGN: "bias update with the wrong sign",
    Reason.BIAS_LOST: "selection bias lost at the restart",
    Reason.BIAS_STANDS: "selection bias does not move",
}
"""Causes of LINT that the steps prove: what explains an uneven load, in words."""
_SETTINGS = {
    Reason.AUX_IGNORED: "auxiliary loss not applied",
    Reason.NO_BALANCING: "no load balancing",
    Reason.ROUTER_FROZEN: "frozen router",
    Reason.AUX_NOT_APPLIED: "auxiliary loss not applied",
    Reason.TOP1_NORMALISED: "top-1 routing with normalised weights",
    Reason.AUX_POOLED: "auxiliary loss pooled over all layers",
    Reason.LAYERS_POOLED: "auxiliary loss pooled over all layers",
    Reason.BIAS_NOT_UPDATED: "selection bias not updated",
    Reason.AUX_TOO_STRONG: "auxiliary loss too strong",
}
"""The same for settings with which balancing cannot work."""
EXPLAINING = frozenset({*_PROVEN, *_SETTINGS})
_SLOW = {"bias": "bias update too slow", "aux": "auxiliary loss too weak"}
_LOADED = (
    "compare what was loaded with what was saved: router weights, selection bias, optimizer state "
    "and the position in the data"
)
_SIGN = (
    "first check the sign of the bias update in {}, where the bias of busy experts rises so far; "
    "do not raise the rate before"
)
_DATA = "compare the load on the data before and after this step"
_BATCHES = (
    "look at the batches, and at what else changed at that step, before you touch weights or "
    "settings: the other experts are even"
)
_FROZEN = (
    "no setting balances a frozen router: train on other data, or unfreeze the router; compare the "
    "load before the training"
)

_LEVEL = 8
"""Lines of a level: the last ones against those before them, and these against the ones before."""
_FAR = 6.0
"""A jump is this much larger than the spread of both levels, …"""
_TREND = 4.0
"""… than the step from the level before, so a steep fall is not a jump, …"""
_SHARE = 0.02
"""… and this share of the loss."""
_MOST_CHANGES = 50
_USUAL = ("eval", "checkpoint", "alert", "lint", "lost_records", "end")


class Changes(msgspec.Struct):
    """Jumps of the loss and the writer's own events: steps at which the data may have changed."""

    steps: list[int] = []
    """Of the losses that are still compared."""
    losses: list[float] = []
    found: list[tuple[int, str]] = []
    """Step and words of each change, at most 50."""

    def add(self, step: int, loss: float) -> None:
        """Every eighth line ends a level."""
        self.steps.append(step)
        self.losses.append(loss)
        if len(self.losses) < 3 * _LEVEL:
            return
        blocks = [self.losses[at : at + _LEVEL] for at in (0, _LEVEL, 2 * _LEVEL)]
        before, old, new = map(median_low, blocks)
        rise, least = abs(new - old), _SHARE * abs(old)
        levels = zip(blocks if rise > least else (), (before, old, new), strict=False)
        spreads = [median_low([abs(loss - level) for loss in block]) for block, level in levels]
        if spreads and rise > max(_FAR * max(spreads), _TREND * abs(old - before), least):
            first = 2 * _LEVEL
            while abs(self.losses[first - 1] - new) < abs(self.losses[first - 1] - old):
                first -= 1  # it began within the block before
            self.note(self.steps[first], f"the loss jumps from {old:.3g} to {new:.3g}")
        del self.steps[:_LEVEL], self.losses[:_LEVEL]

    def event(self, step: int, name: str) -> None:
        """Note an event that is not one of the usual ones, such as a checkpoint."""
        if name not in _USUAL:
            self.note(step, f"the log has the event {name!r}")

    def note(self, step: int, words: str) -> None:
        """A change at ``step``, in words."""
        self.found = [*self.found, (step, words)][-_MOST_CHANGES:]

    def forget_from(self, step: int) -> None:
        """The run resumes at ``step``."""
        self.steps = []
        self.losses = []
        self.found = [(at, words) for at, words in self.found if at < step]


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What causes are found by, besides the episodes."""

    run: RunRecord
    """The header, with the profile by which it is judged."""
    checkpoints: Sequence[int] = ()
    """Steps at which one was written."""
    resumes: Sequence[int] = ()
    """First steps after restarts."""
    changes: Sequence[tuple[int, str]] = ()
    """See ``Changes``."""
    swing: float = 0.0
    """The largest swing of the load of any router."""
    doubted: Sequence[int] = ()
    """Routers whose bias update may have the wrong sign."""
    newest: int = 0
    """The last step."""

    def remedy_of(self, episode: Episode) -> str:
        """What its rule advises; the swing limits how far a setting is raised."""
        known = replace(episode, facts=episode.facts | {"swing": self.swing})
        return RULES[episode.rule].words(known, self.run)[1]


class Cause(msgspec.Struct, frozen=True):
    """Findings with one explanation and one remedy, worst first."""

    title: str = ""
    """Empty where nothing is known."""
    findings: tuple[Finding, ...] = ()
    """What it explains, the worst first."""
    remedy: str = ""
    """By default that of the rule of the first finding."""
    onset: int = 0
    """Where it began: checkpoints before this step are sound."""
    sign: Episode | None = None
    """The first sign of a divergence."""
    goes_back: bool = True
    """Whether the remedy may include an earlier checkpoint."""
    reset: str = ""
    """What else to undo when going back."""

    @property
    def explained(self) -> tuple[Finding, ...]:
        """Without the finding that is the cause itself, and without early signs."""
        found = [f for f in self.findings if not RULES[f.rule].judges_settings]
        grave = [f for f in found if f.severity > Severity.INFO and not f.worst.led_to]
        return tuple(grave or found)


_Found = tuple[Cause, list[Episode]]


def causes(episodes: Iterable[Episode], known: Known) -> list[Cause]:
    """Active before recovered, worst first."""
    left = list(episodes)
    found = list[Cause]()
    slides = dict[int, list[Episode]]()
    for episode in sorted(left, key=lambda e: -e.onset):
        if _starves(episode) and episode.warns:
            slides.setdefault(episode.router_index, []).append(episode)
    if any(e.reason != Reason.ALTERNATING for e in _of("OSCILLATION", left)):
        known = replace(known, swing=max(known.swing, LEAST_SWING))
    proven, settings = partial(_by_lint, _PROVEN), partial(_by_lint, _SETTINGS)
    certain = (_forced, _ranks, proven, _divergences, settings, _swings, _moments)
    for find in (*certain, _at_once, _born, _overflow, _alternating, _weak, _drops):
        for cause, members in find(left, known):
            found.append(_complete(cause, group(members), slides, known))
            left = _without(left, members)
    for finding in group(left):
        found.append(_complete(Cause(), [finding], slides, known))
    return sorted(found, key=_gravity)


def _gravity(cause: Cause) -> tuple[bool, int, int, int]:
    active = [f for f in cause.findings if f.active] or list(cause.findings)
    worst = max(f.severity for f in active)
    first = min(f.onset for f in active)
    return not active[0].active, -worst, RULES[cause.findings[0].rule].cause_rank, first


def _complete(
    cause: Cause, findings: Sequence[Finding], slides: dict[int, list[Episode]], known: Known
) -> Cause:
    shown = [f for f in findings if not RULES[f.rule].judges_settings] or findings
    serious = [e for f in shown for e in f.episodes if f.active] or shown[0].episodes
    onsets = [cause.sign.onset] if cause.sign is not None else []
    onsets += [_chain_onset(e, slides.get(e.router_index, ())) for e in serious]
    remedy = cause.remedy or known.remedy_of(shown[0].worst)
    return replace(cause, findings=tuple(findings), remedy=remedy, onset=min(onsets))


def _without(episodes: Sequence[Episode], taken: Iterable[Episode]) -> list[Episode]:
    ids = set(map(id, taken))
    return [episode for episode in episodes if id(episode) not in ids]


def _by_lint(titles: Mapping[Reason, str], left: list[Episode], known: Known) -> Iterator[_Found]:
    lint = [e for e in _of("LINT", left) if e.active]
    for reason, title in titles.items():
        proofs = [e for e in lint if e.reason == reason]
        explained = _explained_by(proofs, left, known) if proofs else []
        if not any(e.warns for e in explained):
            continue
        frozen = reason == Reason.ROUTER_FROZEN
        remedy = _FROZEN if frozen else known.remedy_of(proofs[0])
        zero = f", with expert_bias{place(proofs[0], known.run)} set to zero"
        reset = zero if reason == Reason.WRONG_SIGN else ""
        yield Cause(title, remedy=remedy, goes_back=not frozen, reset=reset), [*proofs, *explained]
        return


def _explained_by(proofs: list[Episode], left: list[Episode], known: Known) -> list[Episode]:
    uneven = _beside(left, _uneven(left, known))
    uniform = _of("UNIFORM", left)
    match proofs[0].reason:
        case Reason.AUX_TOO_STRONG:
            return uniform
        case Reason.ROUTER_FROZEN if not _all_frozen(known.run):
            return []
        case Reason.ROUTER_FROZEN | Reason.TOP1_NORMALISED:
            return uneven + uniform
        case Reason.WRONG_SIGN:
            return uneven + _of("OSCILLATION", left)
        case Reason.BIAS_LOST:
            first = proofs[0].onset - number(proofs[0], "ago")
            return [e for e in uneven if e.onset >= first - _GAP]
        case Reason.BIAS_STANDS:
            return [e for e in uneven if e.router_index in ids_of(proofs[0], "routers")]
        case Reason.LAYERS_POOLED:  # even layers beside uneven ones are what pooling hides
            layers = {e.router_index for e in uneven}
            return uneven if len(layers) != len(known.run.routers) else []
    return uneven


def _of(rule: str, episodes: Iterable[Episode]) -> list[Episode]:
    return [episode for episode in episodes if episode.rule == rule]


def _uneven(episodes: Iterable[Episode], known: Known) -> list[Episode]:
    if known.run.profile == "eval":
        return []
    rules = _UNEVEN if known.run.profile == "pretrain" else _UNEVEN_IF_NARROW
    return [e for e in episodes if e.rule in rules and e.reason != Reason.OF_RANK]


def _unbalanced(episodes: Iterable[Episode], known: Known) -> list[Episode]:
    return [e for e in _uneven(episodes, known) if RULES[e.rule].wants_balance]


def _all_frozen(run: RunRecord) -> bool:
    frozen = run.balance.get("frozen_routers")
    if run.balance.get("method") == "bias":
        return False  # a bias balances a frozen router, too
    return not isinstance(frozen, int | float) or not 0 < frozen < len(run.routers)


def _forced(left: list[Episode], known: Known) -> Iterator[_Found]:
    """A collapse on purpose: the header has its layer and its first step."""
    if "force_collapse" not in known.run.balance:
        return
    layer, step = map(int, known.run.balance["force_collapse"].split("@"))
    here = [e for e in _uneven(left, known) if e.router and e.router.depth == layer]
    core = [e for e in here if e.onset >= step - 10 and e.warns]
    if core:
        name = setting(known.run, "force_collapse")
        title, remedy = f"forced with {name} {layer}@{step}", f"train a new run without {name}"
        yield Cause(title, remedy=remedy, goes_back=False), _beside(left, core)


def _ranks(left: list[Episode], known: Known) -> Iterator[_Found]:
    """Experts without tokens that are exactly those of whole ranks."""
    ranks = known.run.expert_parallel_size
    found = dict[tuple[int, ...], list[Episode]]()
    for episode in left:
        experts = ids_of(episode, "experts" if episode.rule == "DEAD" else "idle")
        number = episode.router.num_experts if episode.router is not None else 0
        if filled := ranks_of(experts, number, known.run):
            each = number // ranks
            resumed = _last_before(known.resumes, episode.onset)
            if each > 3 or resumed is not None:  # two neighbours can die by chance
                found.setdefault((each, *filled), []).append(episode)
    for (each, *blocks), episodes in found.items():
        onset = min(e.onset for e in episodes)
        resumed = _last_before(known.resumes, onset)
        at = f"the restart at {resumed:,}" if resumed is not None else f"step {onset:,}"
        first, last = each * blocks[0], each * (blocks[-1] + 1) - 1
        names = " and ".join(map(str, blocks))
        title = (
            f"experts {first} to {last} of {each * ranks} on {ranks} ranks are rank {names}: "
            f"its counts or weights are missing since {at}"
        )
        if len({e.router_index for e in episodes}) == len(known.run.routers):
            title += ", or the data that only these experts serve ended there"
        remedy = (
            f"check that rank {names} loads its own part of the checkpoint and that the counts are "
            "summed over all ranks; do not re-initialise these experts"
        )
        yield Cause(title, remedy=remedy, goes_back=False), _beside(left, episodes)


def _beside(left: Sequence[Episode], core: Sequence[Episode]) -> list[Episode]:
    """``core``, and the uneven load of the same routers at the same time."""
    beside = (*_UNEVEN, "HOT_EXPERT", "SHOCK")
    return [*core, *(e for e in _without(left, core) if e.rule in beside and overlaps(e, core))]


def _divergences(left: list[Episode], known: Known) -> Iterator[_Found]:
    for members in _clusters(left):
        sign = next(e for e in members if RULES[e.rule].family == "divergence")
        remedy = calm_down(known.run, early=any(e.facts.get("sign") for e in members))
        cause = Cause("learning rate too high, the run diverges", remedy=remedy, sign=sign)
        lost = _of("DIVERGED", members)
        if lost and not _of("LOGITS", members):
            title = f"diverged at {lost[0].onset:,}: the loss is {lost[0].facts['loss']}"
            cause = replace(cause, title=title, remedy=known.remedy_of(lost[0]))
        elif [e.severity for e in members] == [Severity.WARN] and sign.reason is None:
            remedy = f"nothing while loss and grad_norm stay flat; if they rise, {remedy}"
            cause = Cause(remedy=remedy, goes_back=False)
        core = [e for e in members if e.warns]
        yield cause, _beside([e for e in left if e.onset >= sign.onset - _GAP], core)


def _swings(left: list[Episode], known: Known) -> Iterator[_Found]:
    swings = [e for e in _of("OSCILLATION", left) if e.active]
    by_bias = [e for e in swings if e.reason != Reason.ALTERNATING]
    if by_bias and known.run.balance.get("method") == "bias":
        first = max(by_bias, key=lambda e: number(e, "moves"))
        title = f"{setting(known.run, 'bias_update_rate')} too high"
        if number(first, "moves"):
            title = f"bias too fast in {known.run.routers[first.router_index].name}"
        remedy = known.remedy_of(first)
        yield Cause(title, remedy=remedy, goes_back=False), _beside(left, swings)


def _moments(left: list[Episode], known: Known) -> Iterator[_Found]:
    # Where restarts follow each other closely, one is beside any onset.
    rare = [b for a, b in pairwise((-3 * _AFTER, *known.resumes)) if b - a > 2 * _AFTER]
    moments = [(at, f"restart at step {at:,}", _LOADED, 1) for at in rare]
    moments += [(at, f"change at step {at:,}: {what}", _DATA, 2) for at, what in known.changes]
    for at, title, remedy, least in moments:
        members = [e for e in _uneven(left, known) if at <= e.onset <= at + _AFTER]
        serious = [e for e in members if e.warns]
        if serious and len({e.router_index for e in serious}) >= min(least, len(known.run.routers)):
            otherwise = known.remedy_of(serious[0])
            yield Cause(title, remedy=f"{remedy}; if that is right, {otherwise}"), members
            left = _without(left, members)


def _at_once(left: list[Episode], known: Known) -> Iterator[_Found]:
    """Experts of several layers stop in one step, and the others stay even."""
    unbalanced = [e for e in _unbalanced(left, known) if e.warns]
    even = [e for e in unbalanced if not 0 < number(e, "at_once") < EVEN]
    for first in even:
        core = [e for e in even if abs(e.onset - first.onset) <= _WINDOW]
        proofs = [e for e in core if number(e, "at_once") and e.rule != "BIAS_RUNAWAY"]
        layers, onset = len({e.router_index for e in core}), min(e.onset for e in core)
        if min(layers, len(proofs)) > 1:
            all_of = len(known.run.routers)
            which = "all" if layers == all_of else f"{layers} of {all_of}"
            restart = "" if _last_before(known.resumes, onset) is not None else ", no restart"
            title = f"{which} layers at step {onset:,}{restart}: data or code changed there"
            yield Cause(title, remedy=_BATCHES, goes_back=False), _beside(left, core)
            return


def _born(left: list[Episode], known: Known) -> Iterator[_Found]:
    if born := list(filter(few_from_start, _uneven(left, known))):
        yield Cause("router rows that never won a token", goes_back=False), _beside(left, born)


def _overflow(left: list[Episode], known: Known) -> Iterator[_Found]:
    """One expert drops tokens that no usual capacity takes, in a layer that has not collapsed."""
    fallen = {e.router_index for e in _of("COLLAPSE", left) if e.warns}
    core = [e for e in _of("DROPS", left) if "since" in e.facts and e.router_index not in fallen]
    if core:
        yield Cause("one expert overflows", goes_back=False), _beside(left, core)


def _alternating(left: list[Episode], known: Known) -> Iterator[_Found]:
    """Data that alternates, and what is uneven beside it, but for what is critical."""
    swings = [e for e in _of("OSCILLATION", left) if e.active and e.reason == Reason.ALTERNATING]
    if swings:
        title = f"data or micro-batches alternate with period {number(swings[0], 'period'):.0f}"
        beside = [e for e in _beside(left, swings) if e.severity < Severity.CRITICAL]
        yield Cause(title, remedy=known.remedy_of(swings[0]), goes_back=False), beside


def _weak(left: list[Episode], known: Known) -> Iterator[_Found]:
    # No strength evens out turns.
    core = [e for e in _unbalanced(left, known) if e.reason != Reason.IN_TURN]
    method = str(known.run.balance.get("method"))
    title = _SLOW.get(method, "load balancing too weak")
    if method == "bias" and known.swing > MOST_SWING:
        rate = setting(known.run, "bias_update_rate")
        title = f"{rate} too high for some layers, too low for others"
    if any(e.warns for e in core):
        worst = min(core, key=lambda e: (not e.active, -e.severity, RULES[e.rule].cause_rank))
        stalled = (e for e in core if e.active and number(e, "stalled"))
        remedy = known.remedy_of(next(stalled, worst))
        if doubted := [e.router for e in core if e.router_index in known.doubted and e.router]:
            title += ", or its sign is wrong"
            remedy = _SIGN.format(listed(sorted({router.name for router in doubted})))
        yield Cause(title, remedy=remedy), _beside(left, core)


def _drops(left: list[Episode], known: Known) -> Iterator[_Found]:
    if drops := _of("DROPS", left):
        yield Cause("capacity too small"), drops


def _last_before(steps: Sequence[int], onset: int) -> int | None:
    return max((at for at in steps if at - _GAP <= onset <= at + 2 * _AFTER), default=None)


def _chain_onset(episode: Episode, slides: Iterable[Episode]) -> int:
    """Of the first episode that led to this one without a gap.

    ``slides``: those of the router that starve, the latest onset first.
    """
    onset = episode.onset
    for earlier in slides if _starves(episode) else ():
        if earlier.onset < onset <= (earlier.recovered_at or earlier.last) + _GAP:
            onset = earlier.onset
    return onset


def _starves(episode: Episode) -> bool:
    return RULES[episode.rule].family == "starvation"


def overlaps(trouble: Episode, episodes: Iterable[Episode]) -> bool:
    """Whether one of the others is in the same router at the same time."""
    return any(
        trouble.router_index == e.router_index
        and trouble.onset <= e.last
        and (trouble.recovered_at is None or trouble.recovered_at > e.onset)
        for e in episodes
    )


def _clusters(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """The signs of each divergence and what followed them, earliest onset first."""
    serious = sorted((e for e in episodes if e.warns), key=lambda e: e.onset)
    clusters: list[list[Episode]] = []
    for sign in (e for e in serious if RULES[e.rule].family == "divergence"):
        if clusters and sign.onset <= max(map(_end, clusters[-1])):
            clusters[-1].append(sign)
        else:
            clusters.append([sign])
    for signs in clusters:
        followed = [e for e in serious if RULES[e.rule].wants_balance and _follows(e, signs)]
        found = sorted([*signs, *followed], key=lambda e: e.onset)
        # A gradient spike alone is not a divergence.
        if any(RULES[e.rule].announced_by for e in found):
            yield found


def _end(sign: Episode) -> int:
    return min(sign.last, sign.onset + _REACH) + _GAP


def _follows(episode: Episode, signs: list[Episode]) -> bool:
    """Signs of several routers are those of the run; a gradient spike, if an alarm followed."""
    several = len({sign.router_index for sign in signs} - {WHOLE_RUN}) > 1
    return any(
        signs[0].onset - _GAP <= episode.onset <= _end(sign)
        for sign in signs
        if sign.router_index == episode.router_index
        or (several and sign.router_index != WHOLE_RUN)
        or (sign.router_index == WHOLE_RUN and sign.severity is Severity.CRITICAL)
    )
