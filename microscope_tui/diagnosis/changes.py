"""Steps at which the data changed: the loss jumps to another level, or the log has an event."""

from statistics import median_low

import msgspec

_LINES = 8
"""Lines of a level: the last ones against those before them, and these against the ones before."""
_FAR = 6.0
"""A jump is this much larger than the spread of both levels, …"""
_TREND = 4.0
"""… than the step from the level before, so a steep fall is not a jump, …"""
_SHARE = 0.02
"""… and this share of the loss."""
_MOST = 50
_USUAL = ("eval", "checkpoint", "alert", "lint", "lost_records", "end")


class Changes(msgspec.Struct):
    """Jumps of the loss and the writer's own events, with their steps, in words."""

    steps: list[int] = []
    losses: list[float] = []
    found: list[tuple[int, str]] = []

    def add(self, step: int, loss: float) -> None:
        """Add one line; every eighth one ends a level."""
        self.steps.append(step)
        self.losses.append(loss)
        if len(self.losses) < 3 * _LINES:
            return
        blocks = [self.losses[at : at + _LINES] for at in (0, _LINES, 2 * _LINES)]
        before, old, new = map(median_low, blocks)
        rise, least = abs(new - old), _SHARE * abs(old)
        levels = zip(blocks if rise > least else (), (before, old, new), strict=False)
        spreads = [median_low([abs(loss - level) for loss in block]) for block, level in levels]
        if spreads and rise > max(_FAR * max(spreads), _TREND * abs(old - before), least):
            first = 2 * _LINES
            while abs(self.losses[first - 1] - new) < abs(self.losses[first - 1] - old):
                first -= 1  # it began within the block before
            self.note(self.steps[first], f"the loss jumps from {old:.3g} to {new:.3g}")
        del self.steps[:_LINES], self.losses[:_LINES]

    def event(self, step: int, name: str) -> None:
        """Add an event with a name of the writer's own."""
        if name not in _USUAL:
            self.note(step, f"the log has the event {name!r}")

    def note(self, step: int, words: str) -> None:
        self.found = [*self.found, (step, words)][-_MOST:]

    def forget_from(self, step: int) -> None:
        """The run resumes at ``step``."""
        self.steps, self.losses = [], []
        self.found = [(at, words) for at, words in self.found if at < step]
