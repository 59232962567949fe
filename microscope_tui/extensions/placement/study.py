"""A placement fitted to some steps of a run, and scored on later ones.

It is judged against the placement of today in the same steps. How it ages is measured with
placements refitted at many steps, each scored some steps later.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import msgspec

from microscope_tui.extensions.placement.published import published
from microscope_tui.extensions.placement.refine import refined
from microscope_tui.watch.cluster import (
    BadCluster,
    Cluster,
    Placement,
    contiguous,
    double_copies,
    rank_loads,
)
from microscope_tui.watch.counted import Counts, Layer
from microscope_tui.watch.score import (
    Columns,
    Gain,
    Tally,
    busiest,
    even_shares,
    gain_of,
    nearest_shares,
)

LAGS = (1, 3, 10, 30, 100, 300, 1000)
LEAST_GAIN = 0.01
"""Gain in balancedness that is worth a change."""
KEPT_GAIN = 0.9
"""Share of what it won at first at which an ageing placement is replaced."""
BANDWIDTH = 25e9
"""Bytes per second that a rank receives over a link of 200 Gbit/s."""
_FITS, _LEAST_ANCHORS, _MOST_ANCHORS = 1_500, 8, 200
_AGEING_STEPS = 100
Steps = tuple[int | None, int | None]
OPEN: Steps = (None, None)
Progress = Callable[[float], None]


class BadWindow(ValueError):
    """The steps to fit or to score are empty, or overlap; the message says which."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a placement is fitted for and scored on; see ``Cluster`` for the first four."""

    ranks: int
    nodes: int = 1
    groups: int = 1
    replicas: int = 0
    fit: Steps = OPEN
    """First and last step; by default the first half of the counted steps."""
    score: Steps = OPEN
    """By default the steps after ``fit``."""
    expert_bytes: float = 0.0
    step_time: float = 0.0
    """Seconds of a whole step; 0 for unknown."""
    expert_share: float = 1.0
    """Share of a balanced step that the experts take."""

    def cluster(self, layer: Layer) -> Cluster:
        """The ranks of a layer with its number of experts.

        ``BadCluster``: they do not fit the ranks; the message names the router.
        """
        sizes = {name: getattr(self, name) for name in ("ranks", "nodes", "groups", "replicas")}
        try:
            return Cluster(experts=layer.router.num_experts, **sizes)
        except BadCluster as error:
            raise BadCluster(f"{layer.router.name}: {error}") from None


class Scored(msgspec.Struct, kw_only=True):
    """One way to place all layers."""

    name: str
    placements: Sequence[Placement]
    """One per layer."""
    fitted: float
    held_out: float
    """In the scored steps."""
    ratio: float
    """Σ max ÷ Σ mean there."""
    layers: list[float | None]
    """Balancedness of every layer there."""
    doubles: int
    """Copies on a rank that holds their expert already, in all layers."""


class Aged(msgspec.Struct, frozen=True):
    """Placements ``lag`` steps after the last step that they were fitted to."""

    lag: int
    balancedness: float
    gain: float
    """Against the placement of today in the same steps."""
    won: float
    """The share of today's lost time that it wins back: only this is alike where loads are more
    uneven at some steps than at others, as when balancing sets in."""
    number: int
    """Placements in the mean."""


class Moves(msgspec.Struct, frozen=True):
    """What it costs to move experts from their ranks of today to those of the chosen placement."""

    copies: int
    """Copies of experts that a rank does not hold yet, in all layers."""
    most: int
    """Of these, those of the rank that receives most."""
    bytes: float
    seconds: float
    """Until the rank with most has received its copies."""
    break_even: float | None
    """Steps that save as much time; ``None`` where the time of a step is unknown."""


class Study(msgspec.Struct):
    """What a placement gains on steps that it was not fitted to, beside its alternatives."""

    counts: Counts
    request: Request
    fit: tuple[int, int, int]
    """First step, last step, number of counted steps."""
    score: tuple[int, int, int]
    loads: list[list[float]]
    """For every layer and expert the mean count in the scored steps."""
    today: Scored
    published: Scored
    chosen: Scored
    """The refined placement, or the one that was given."""
    nearest: float
    """Held-out balancedness of ``chosen`` if every rank sends to the nearest copy."""
    gain: Gain
    ageing: list[Aged]
    interval: float | None
    """Steps after which a placement wins back a tenth less lost time; ``inf`` if it never does."""
    moves: Moves

    @property
    def reason(self) -> str:
        """Why the move to the placement does not pay, as a clause; empty if it does."""
        gain = self.gain
        steps = self.score[1] - self.score[0] + 1
        if gain.low is None:
            return "the scored steps with counts are too few for an interval"
        if gain.mean < LEAST_GAIN:
            return f"the gain is below {LEAST_GAIN}"
        if gain.low <= 0:
            return "the 95 % interval of the gain reaches 0"
        if self.moves.break_even is not None and self.moves.break_even > steps:
            return f"the move is paid back only after the {steps:,} scored steps"
        return ""


def study(
    counts: Counts,
    request: Request,
    given: Sequence[Placement] | None = None,
    progress: Progress = lambda share: None,
) -> Study:
    """Fit a placement, or take the ``given`` one, and score it and its alternatives.

    Args:
        counts: Of the run.
        request: The ranks, and which steps to fit and to score.
        given: One placement per layer of ``counts``; ``None`` fits one.
        progress: Called with the share that is done, 0 … 1; what it raises ends the study.

    Raises:
        BadCluster: the experts of a layer do not fit the ranks.
        BadWindow: there is nothing to fit or to score, or steps are in both.
    """
    fit, score = _windows(counts, request)
    clusters = [request.cluster(layer) for layer in counts.layers]
    placed = []
    ageing = _Ageing(counts, len(fit))
    for at, (layer, cluster) in enumerate(zip(counts.layers, clusters, strict=True)):
        progress(at / len(clusters))
        placed.append(_placed(layer.columns(fit), cluster, given[at] if given else None))
        ageing.add(layer, cluster, placed[-1][0])
    names = "contiguous", "published", "refined" if given is None else "file"
    ways = zip(names, zip(*placed, strict=True), strict=True)
    scored = [_scored(name, placements, counts, fit, score) for name, placements in ways]
    (today, before), (eplb, _), (chosen, after) = scored
    nearest = Tally(len(score))
    for layer, cluster, placement in zip(counts.layers, clusters, chosen.placements, strict=True):
        nearest.place(layer.columns(score), placement, nearest_shares(placement, cluster))
    pairs = zip(after.steps(), before.steps(), strict=True)
    gain = gain_of([a - b for a, b in pairs if a is not None and b is not None])
    curve = ageing.curve()
    return Study(
        counts=counts,
        request=request,
        fit=_ends(counts, fit),
        score=_ends(counts, score),
        loads=[[sum(one) / len(score) for one in each.columns(score)] for each in counts.layers],
        today=today,
        published=eplb,
        chosen=chosen,
        nearest=nearest.balancedness,
        gain=gain,
        ageing=curve,
        interval=_interval(curve),
        moves=_moves(today, chosen, request),
    )


def _placed(
    early: Columns, cluster: Cluster, given: Placement | None
) -> tuple[Placement, Placement, Placement]:
    """Today's placement, the published one, and ``given`` or what waits least in the fitted steps.

    That is the refined one mostly: the sum that it lowers does not show how single steps vary.
    Where they wait as long, today's is kept.
    """
    totals = [sum(column) for column in early]
    today, eplb = contiguous(cluster.experts, cluster.ranks), published(totals, cluster)
    if given is not None:
        return today, eplb, given
    options = [refined(totals, cluster), eplb]
    if max(rank_loads(totals, today)) <= max(rank_loads(totals, eplb)) and not cluster.replicas:
        options.insert(0, today)

    def waits(placement: Placement) -> tuple[float, int]:
        waited = sum(busiest(early, placement, even_shares(placement, cluster.experts)))
        return float(f"{waited:.9e}"), double_copies(placement)

    return today, eplb, min(options, key=waits)


def _scored(
    name: str, placements: Sequence[Placement], counts: Counts, fit: range, score: range
) -> tuple[Scored, Tally]:
    early = Tally(len(fit))
    late = Tally(len(score))
    layers = []
    for layer, placement in zip(counts.layers, placements, strict=True):
        early.place(layer.columns(fit), placement)
        layers.append(late.place(layer.columns(score), placement))
    found = Scored(
        name=name,
        placements=placements,
        fitted=early.balancedness,
        held_out=late.balancedness,
        ratio=late.ratio,
        layers=layers,
        doubles=sum(map(double_copies, placements)),
    )
    return found, late


class _Ageing:
    """Placements refitted at steps all over the run by the published algorithm, which is fast."""

    def __init__(self, counts: Counts, fit: int) -> None:
        steps = counts.steps
        number = len(counts.steps)
        self._window = max(1, min(fit, number // 10, _AGEING_STEPS))
        most = max(_LEAST_ANCHORS, min(_MOST_ANCHORS, _FITS // len(counts.layers)))
        first, last = self._window - 1, number - 2
        spread = {first + i * (last - first) // max(1, most - 1) for i in range(most)}
        self._anchors = sorted(at for at in spread if first <= at <= last)
        self._later: list[tuple[int, int, int]] = []  # anchor, lag, position that is scored
        for anchor in self._anchors:
            for lag in LAGS:
                at = bisect_left(steps, steps[anchor] + lag)
                if at < number and steps[at] - steps[anchor] < 1.5 * lag:
                    self._later.append((anchor, lag, at))
        self._before, self._after = Tally(len(self._later)), Tally(len(self._later))

    def add(self, layer: Layer, cluster: Cluster, today: Placement) -> None:
        experts = cluster.experts
        placed = dict[int, Placement]()
        for anchor in self._anchors:
            columns = layer.columns(range(anchor + 1 - self._window, anchor + 1))
            placed[anchor] = published([sum(column) for column in columns], cluster)
        rows = [layer.counts[at * experts : (at + 1) * experts] for _, _, at in self._later]
        means = [sum(row) / cluster.ranks for row in rows]
        pairs = zip(rows, self._later, strict=True)
        after = [max(rank_loads(row, placed[anchor])) for row, (anchor, _, _) in pairs]
        self._after.add(means, after)
        self._before.add(means, [max(rank_loads(row, today)) for row in rows])

    def curve(self) -> list[Aged]:
        """The mean for every lag that the run is long enough for."""
        pairs = zip(self._later, self._after.steps(), self._before.steps(), strict=True)
        found: dict[int, list[tuple[float, float]]] = {}
        for (_, lag, _), after, before in pairs:
            if after is not None and before is not None:
                found.setdefault(lag, []).append((after, after - before))
        curve = []
        for lag, rows in sorted(found.items()):
            balancedness, gain = (sum(values) / len(rows) for values in zip(*rows, strict=True))
            lost = 1 - balancedness + gain
            won = max(gain / lost, -1.0) if lost > 0 else 0.0
            curve.append(Aged(lag, balancedness, gain, won, len(rows)))
        return curve


def _interval(curve: Sequence[Aged]) -> float | None:
    """Where what is won falls to ``KEPT_GAIN`` of the first; between two lags on a log scale."""
    if not curve or curve[0].gain < LEAST_GAIN:
        return None
    limit = KEPT_GAIN * curve[0].won
    for before, after in itertools.pairwise(curve):
        if after.won < limit:
            part = (before.won - limit) / (before.won - after.won)
            return float(before.lag * (after.lag / before.lag) ** part)
    return math.inf


def _windows(counts: Counts, request: Request) -> tuple[range, range]:
    number = len(counts.steps)
    middle = (number + 1) // 2
    score = None if request.score == OPEN else counts.between(*request.score)
    if request.fit != OPEN:
        fit = counts.between(*request.fit)
    elif score is not None:
        fit = range(min(middle, score.start))
    else:
        fit = range(middle)
    if score is None:
        score = range(fit.stop, number)
    there = f"counts are of steps {counts.steps[0]:,} to {counts.steps[-1]:,}"
    if number == 1 and (request.fit, request.score) == (OPEN, OPEN):
        score = fit  # a dump of one sum: placed and written, and never proven
    if not fit:
        raise BadWindow(f"no counted step to fit a placement to (--fit A:B): {there}")
    if not score:
        raise BadWindow(f"no counted step is left to score a placement on: {there}")
    if fit is not score and max(fit.start, score.start) < min(fit.stop, score.stop):
        raise BadWindow("--fit and --score overlap: score steps that are not fitted")
    return fit, score


def _ends(counts: Counts, window: range) -> tuple[int, int, int]:
    return counts.steps[window.start], counts.steps[window.stop - 1], len(window)


def _moves(before: Scored, after: Scored, request: Request) -> Moves:
    incoming = [0] * request.ranks
    for old, new in zip(before.placements, after.placements, strict=True):
        for rank in range(request.ranks):
            incoming[rank] += len(set(new[rank]) - set(old[rank]))
    seconds = max(incoming) * request.expert_bytes / BANDWIDTH
    break_even = None
    if request.step_time and request.expert_bytes:
        slow = [1 + request.expert_share * (one.ratio - 1) for one in (before, after)]
        saved = request.step_time * (1 - slow[1] / slow[0])
        break_even = seconds / saved if saved > 0 else math.inf
    amount = sum(incoming) * request.expert_bytes
    return Moves(sum(incoming), max(incoming), amount, seconds, break_even)
