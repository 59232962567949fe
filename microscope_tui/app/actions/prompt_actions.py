"""The prompt in the last line: receives keys before any binding does."""

from textual import events

from microscope_tui.app.actions.out_actions import OutActions
from microscope_tui.app.place import (
    AtClock,
    AtStep,
    BadPlace,
    BeforeNewest,
    Place,
    parse_place,
    place_to_step,
    place_to_time,
    step_at_time,
)
from microscope_tui.app.prompt import COPY_CHOICES, Kind
from microscope_tui.lines import Pattern


class PromptActions(OutActions):
    """Prompts for a step, a filter, or what to copy."""

    async def action_ask(self, kind: Kind) -> None:
        """Open the prompt."""
        if self.session.has_run:
            typed = self.filter_text() if kind == "filter" else ""
            self.prompt.ask(kind, typed)
            self.draw_last_line()

    async def on_key(self, event: events.Key) -> None:
        """Send keys to the prompt while it is open, in order."""
        self.session.reader.key_pressed()
        if self.has_said:
            self.tell(None)
        if self.prompt.open:
            event.stop()
            await self._type(event.key, event.character)
        elif (kind := self._asked_by(event.key)) is not None:
            event.stop()
            await self.action_ask(kind)

    async def on_paste(self, event: events.Paste) -> None:
        """Paste text into the prompt."""
        if self.prompt.open:
            for character in event.text.strip():
                if character.isprintable():
                    await self._type(character, character)

    def prompt_hint(self) -> tuple[str, str | None]:
        """The hint of the prompt, and why the input is invalid."""
        if self.prompt.kind == "place":
            newest = self.session.time.newest_step
            examples = f"1 to {newest:,}, 50%, -100, 14:30, -2h"
            return examples, self.session.time.why_no_past()
        if self.prompt.kind == "filter":
            return "text, !text, L1*", Pattern.parse(self.prompt.typed).error or None
        return "", None

    def filter_text(self) -> str:
        """The filter of this screen."""
        return self.session.filter.text

    async def set_filter(self, pattern: Pattern) -> None:
        """Apply the filter."""
        self.session.filter = pattern
        await self.redraw()

    async def answered(self, kind: Kind, text: str) -> None:
        """Do what was typed into a prompt that only some screens have."""
        raise TypeError(f"{type(self).__name__} does not ask for a {kind}")

    async def action_move(self, by: int) -> None:
        """Choose another layer, alert or run."""
        raise TypeError(f"{type(self).__name__} has nothing to move among")

    async def action_match(self, by: int) -> None:
        """The next layer, alert or run that the filter shows."""
        if not self.filter_text():
            self.tell("no filter: / sets one", "dim")
            return
        await self.action_move(by)

    async def _type(self, key: str, character: str | None) -> None:
        kind = self.prompt.kind
        entered = self.prompt.take(key, character)
        self.draw_last_line()
        if kind == "filter":  # applied while typing; esc clears it
            gone = not self.prompt.open and entered is None
            await self.set_filter(Pattern.parse("" if gone else self.prompt.typed))
        elif kind == "copy" and entered:
            self.copy(COPY_CHOICES[entered])
        elif kind == "place" and entered:
            await self.from_disk(self._go_to, entered)
        elif entered:
            await self.answered(kind, entered)

    def _go_to(self, typed: str) -> str | None:
        """Go to the typed place; returns the problem, if any. Reads from the disk."""
        try:
            return self._look_at(parse_place(typed))
        except BadPlace as error:
            return str(error)

    def _look_at(self, place: Place) -> str | None:
        time, watch = self.session.time, self.session.watch
        if watch is None or watch.history is None or watch.latest is None:
            return "no step yet"
        time.speed = 0
        if not isinstance(place, AtClock | BeforeNewest):
            newest = time.newest_step
            problem = time.go_to(place_to_step(place, shown=time.shown_step, newest=newest))
            if problem is None and isinstance(place, AtStep) and place.step > newest:
                return f"step {place.step:,} is not in the log: showing the newest, {newest:,}"
            return problem
        history, latest = watch.history, watch.latest.record
        first = history.time_of(history.steps[0]) if len(history) else None
        if first is None or latest.time is None:
            return "this log has no times: go to a step"
        wanted = place_to_time(place, first_s=first, newest_s=latest.time)
        ends = (history.steps[0], first), (latest.step, latest.time)
        return time.go_to(step_at_time(wanted, *ends, history.time_of))

    def _asked_by(self, key: str) -> Kind | None:
        """What a key prompts for: keys typed right after it belong to the prompt."""
        for binding in self.bindings_shown:
            if key in binding.key.split(",") and binding.action.startswith("ask("):
                kind = binding.action[len("ask('") : -len("')")]
                return kind  # type: ignore[return-value]
        return None
