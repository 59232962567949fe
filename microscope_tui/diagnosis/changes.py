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
        losses = self.losses
        parts = [losses[at : at + _LINES] for at in range(0, 3 * _LINES, _LINES)]
        level = [median_low(part) for part in parts]
        pairs = zip(parts, level, strict=True)
        spread = max(median_low(abs(loss - mid) for loss in part) for part, mid in pairs)
        change, before = abs(level[2] - level[1]), abs(level[1] - level[0])
        if change > max(_FAR * spread, _TREND * before, _SHARE * abs(level[1])):
            first = 2 * _LINES
            while abs(losses[first - 1] - level[2]) < abs(losses[first - 1] - level[1]):
                first -= 1  # it began within the block before
            self.note(self.steps[first], f"the loss jumps from {level[1]:.3g} to {level[2]:.3g}")
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
