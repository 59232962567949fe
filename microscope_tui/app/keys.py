"""All keys: bindings, the line of keys and the help are generated from these lists.

Every binding has an id, by which the config file may give it other keys (see ``keymap.py``).
"""

from collections.abc import Mapping, Sequence

from textual.binding import Binding


def key(
    keys: str, action: str, does: str, id: str, shown: str = "", *, first_of: str = ""
) -> Binding:
    """A binding; ``shown``: its keys in the last line, where it has a place there.

    ``first_of``: what the line says of the whole pair or group that the binding begins.
    """
    return Binding(
        keys,
        action,
        first_of or does,
        id=id,
        show=bool(shown),
        key_display=shown or None,
        tooltip=does,
    )


LAYERS = [
    key("up,k", "move(-1)", "previous layer", "layer.previous", "↑↓", first_of="layer"),
    key("down,j", "move(1)", "next layer", "layer.next"),
    key("home,g", "move(-9999)", "first layer", "layer.first"),
    key("end,G", "move(9999)", "last layer", "layer.last"),
    key("pageup", "page(-1)", "one page up", "layer.page_up"),
    key("pagedown", "page(1)", "one page down", "layer.page_down"),
]
EXPERTS = [
    key("left,h", "expert(-1)", "previous expert", "expert.previous"),
    key("right,l", "expert(1)", "next expert", "expert.next"),
]
TIME = [
    key(
        "left_square_bracket",
        "step(-1)",
        "previous logged step",
        "time.back",
        "[ ]",
        first_of="step",
    ),
    key("right_square_bracket", "step(1)", "next logged step", "time.on"),
    key("left_curly_bracket", "step(-10)", "ten steps back", "time.back_ten"),
    key("right_curly_bracket", "step(10)", "ten steps forward", "time.on_ten"),
    key(
        "colon,comma",
        "ask('place')",
        "go to a step, percentage or time",
        "time.go_to",
        ":",
        first_of="go to",
    ),
    key(
        "f,space",
        "toggle_follow",
        "pause or follow live; stop playback",
        "time.follow",
        "f",
        first_of="pause",
    ),
    key("P", "play", "play back 1, 4, 16 columns a second", "time.play"),
    key("plus,equals_sign", "zoom(0.5)", "zoom in: half as much time", "time.zoom_in"),
    key("minus", "zoom(2)", "zoom out: twice as much time", "time.zoom_out"),
    key("0", "show_all", "show the whole run", "time.show_all"),
    key("x", "next_axis", "time axis: step, run time, clock", "time.axis"),
]
ALERTS = [
    key("a", "next_alert", "next alert, unseen first", "alert.next", "a", first_of="alert"),
    key("A", "acknowledge", "mark the alert as seen", "alert.acknowledge"),
    key("o", "onset", "jump to the onset of the alert", "alert.onset", "o", first_of="onset"),
]
LOOK = [
    key(
        "v",
        "look('overlay')",
        "load, bias, over capacity, ranks",
        "look.overlay",
        "v",
        first_of="view",
    ),
    key("y", "look('scale')", "scale: load, share, log share", "look.scale"),
    key("s", "look('order')", "experts by number, by load, in groups", "look.order"),
    key("c", "look('palette')", "palette", "look.palette"),
    key(
        "b",
        "compare",
        "compare with this step; again: stop",
        "look.compare",
        "b",
        first_of="compare",
    ),
]
FILTER = [
    key(
        "slash",
        "ask('filter')",
        "filter: text, !text, L1*",
        "filter.ask",
        "/",
        first_of="filter",
    ),
    key("n", "match(1)", "next match", "filter.next"),
    key("N", "match(-1)", "previous match", "filter.previous"),
]
OUT = [
    key("Y", "ask('copy')", "copy the verdict, the row or the value", "out.copy"),
    key("w", "write('csv')", "export the loads of this step as CSV", "out.csv"),
    key("W", "write('json')", "export this step as JSON", "out.json"),
    key("S", "write('svg')", "export the screen as SVG", "out.svg"),
]
EVERYWHERE = [
    key("1", "app.go('main')", "all layers", "screen.main"),
    key("2", "app.go('layer')", "one layer", "screen.layer"),
    key("3", "app.go('alerts')", "alerts", "screen.alerts"),
    key("4,r", "app.go('runs')", "runs", "screen.runs", "r", first_of="runs"),
    key("5", "app.go('compare')", "compare", "screen.compare"),
    key("6", "app.go('course')", "loss and learning rate", "screen.course"),
    key("7", "app.go('tokens')", "tokens of a probe", "screen.tokens", first_of="tokens"),
    key("8", "app.go('slices')", "slices of a probe", "screen.slices", first_of="slices"),
    key("9", "app.go('mismatch')", "mismatch of two probes", "screen.mismatch"),
    key("ctrl+p", "app.command_palette", "all commands", "app.palette"),
    key("ctrl+l", "app.repaint", "repaint the screen", "app.repaint"),
    key("question_mark", "app.help", "help", "app.help", "?"),
    key("q", "app.quit", "quit", "app.quit", "q"),
]
BACK = key("escape", "back", "back", "screen.back", "esc")
OPEN_LAYER = key("enter", "open_layer", "open the layer", "layer.open", "⏎", first_of="open")
OPEN_EXPERT = key("enter", "open_expert", "open the expert", "expert.open", "⏎", first_of="expert")

MAIN = [
    *LAYERS,
    OPEN_LAYER,
    *EXPERTS,
    *ALERTS,
    *TIME,
    *LOOK,
    *FILTER,
    *OUT,
    key("escape", "clear", "clear the filter and the cursor", "main.clear"),
    *EVERYWHERE,
]
LAYER = [
    BACK,
    LAYERS[0],
    OPEN_EXPERT,
    *LAYERS[1:],
    *EXPERTS,
    key("tab", "focus_chart(1)", "next chart", "chart.next", "tab", first_of="chart"),
    key("shift+tab", "focus_chart(-1)", "previous chart", "chart.previous"),
    key("z", "enlarge", "enlarge the chart", "chart.enlarge"),
    key("e", "smooth", "smooth the curves", "chart.smooth"),
    *ALERTS,
    *TIME,
    *OUT,
    *EVERYWHERE,
]
EXPERT = [
    BACK,
    key("left,h,up,k", "expert(-1)", "previous expert", "expert.previous", "←→", first_of="expert"),
    key("right,l,down,j", "expert(1)", "next expert", "expert.next"),
    *TIME,
    *OUT,
    *EVERYWHERE,
]
ALERT_LIST = [
    BACK,
    key("up,k", "move(-1)", "previous alert", "alert.up", "↑↓", first_of="alert"),
    key("down,j", "move(1)", "next alert", "alert.down"),
    key("home,g", "move(-9999)", "first alert", "alert.first"),
    key("end,G", "move(9999)", "last alert", "alert.last"),
    key("enter", "open_onset", "show the layer at the onset", "alert.open", "⏎", first_of="onset"),
    key("A", "acknowledge", "mark the alert as seen", "alert.acknowledge", "A", first_of="seen"),
    *FILTER,
    *OUT,
    *EVERYWHERE,
]
COMPARE = [
    BACK,
    *LAYERS,
    OPEN_LAYER,
    key("b", "compare", "compare with this step", "look.compare", "b", first_of="from here"),
    key("c", "look('palette')", "palette", "look.palette"),
    *TIME,
    *FILTER,
    *OUT,
    *EVERYWHERE,
]
COURSE = [
    BACK,
    key("tab", "focus_chart(1)", "next chart", "chart.next", "tab", first_of="chart"),
    key("shift+tab", "focus_chart(-1)", "previous chart", "chart.previous"),
    key("z", "enlarge", "enlarge the chart", "chart.enlarge", "z", first_of="enlarge"),
    key("e", "smooth", "smooth the curves", "chart.smooth", "e", first_of="smooth"),
    *ALERTS,
    *TIME,
    *OUT,
    *EVERYWHERE,
]
RUNS = [
    key("escape", "back", "back", "screen.back", "esc"),
    key("up,k", "move(-1)", "previous run", "run.previous", "↑↓", first_of="run"),
    key("enter", "open_run", "open this run", "run.open", "⏎", first_of="open"),
    key("down,j", "move(1)", "next run", "run.next"),
    key("home,g", "move(-99999)", "first run", "run.first"),
    key("end,G", "move(99999)", "last run", "run.last"),
    key("pageup", "page(-1)", "one page up", "run.page_up"),
    key("pagedown", "page(1)", "one page down", "run.page_down"),
    key("space", "select", "select this run", "run.select", "space", first_of="select"),
    key("s", "solo", "selected runs only; again: all", "run.solo", "s", first_of="solo"),
    key("p", "pin", "compare the open run with this one", "run.pin", "p", first_of="pin"),
    *FILTER,
    *EVERYWHERE,
]
WAITING = [*EVERYWHERE]
HELP = [
    Binding("escape,question_mark,q,enter", "dismiss_help", "close", id="help.close"),
    Binding("up,k", "scroll(-1)", "up", id="help.up"),
    Binding("down,j", "scroll(1)", "down", id="help.down"),
    Binding("pageup", "scroll(-10)", "ten lines up", id="help.page_up"),
    Binding("pagedown,space", "scroll(10)", "ten lines down", id="help.page_down"),
    Binding("w", "words", "what the words mean", id="help.words"),
]


def screens() -> Mapping[str, Sequence[Binding]]:
    """All bindings, by the name of the screen that has them."""
    from microscope_tui.app import probe_keys  # it is made of the lists above

    return {
        "main": MAIN,
        "layer": LAYER,
        "expert": EXPERT,
        "alerts": ALERT_LIST,
        "runs": RUNS,
        "compare": COMPARE,
        "course": COURSE,
        "tokens": probe_keys.TOKENS,
        "slices": probe_keys.SLICES,
        "mismatch": probe_keys.MISMATCH,
        "waiting": WAITING,
        "help": HELP,
    }
