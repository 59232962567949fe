"""All keys: bindings, the line of keys and the help are generated from these lists.

Every binding has an id, by which the config file may give it other keys (see ``keymap.py``).
"""

from collections.abc import Mapping, Sequence

from textual.binding import Binding


def _key(
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
    _key("up,k", "move(-1)", "previous layer", "layer.previous", "↑↓", first_of="layer"),
    _key("down,j", "move(1)", "next layer", "layer.next"),
    _key("home,g", "move(-9999)", "first layer", "layer.first"),
    _key("end,G", "move(9999)", "last layer", "layer.last"),
    _key("pageup", "page(-1)", "one page up", "layer.page_up"),
    _key("pagedown", "page(1)", "one page down", "layer.page_down"),
]
EXPERTS = [
    _key("left,h", "expert(-1)", "previous expert", "expert.previous"),
    _key("right,l", "expert(1)", "next expert", "expert.next"),
]
TIME = [
    _key(
        "left_square_bracket",
        "step(-1)",
        "previous logged step",
        "time.back",
        "[ ]",
        first_of="step",
    ),
    _key("right_square_bracket", "step(1)", "next logged step", "time.on"),
    _key("left_curly_bracket", "step(-10)", "ten steps back", "time.back_ten"),
    _key("right_curly_bracket", "step(10)", "ten steps forward", "time.on_ten"),
    _key(
        "colon,comma",
        "ask('place')",
        "go to a step, percentage or time",
        "time.go_to",
        ":",
        first_of="go to",
    ),
    _key(
        "f,space",
        "toggle_follow",
        "pause or follow live; stop playback",
        "time.follow",
        "f",
        first_of="pause",
    ),
    _key("P", "play", "play back 1, 4, 16 columns a second", "time.play"),
    _key("plus,equals_sign", "zoom(0.5)", "zoom in: half as much time", "time.zoom_in"),
    _key("minus", "zoom(2)", "zoom out: twice as much time", "time.zoom_out"),
    _key("0", "show_all", "show the whole run", "time.show_all"),
    _key("x", "next_axis", "time axis: step, run time, clock", "time.axis"),
]
ALERTS = [
    _key("a", "next_alert", "next alert, unseen first", "alert.next", "a", first_of="alert"),
    _key("A", "acknowledge", "mark the alert as seen", "alert.acknowledge"),
    _key("o", "onset", "jump to the onset of the alert", "alert.onset", "o", first_of="onset"),
]
LOOK = [
    _key(
        "v",
        "look('overlay')",
        "load, bias, over capacity, ranks",
        "look.overlay",
        "v",
        first_of="view",
    ),
    _key("y", "look('scale')", "scale: load, share, log share", "look.scale"),
    _key("s", "look('order')", "experts by number, by load, in groups", "look.order"),
    _key("c", "look('palette')", "palette", "look.palette"),
    _key(
        "b",
        "compare",
        "compare with this step; again: stop",
        "look.compare",
        "b",
        first_of="compare",
    ),
]
FILTER = [
    _key(
        "slash",
        "ask('filter')",
        "filter: text, !text, L1*",
        "filter.ask",
        "/",
        first_of="filter",
    ),
    _key("n", "match(1)", "next match", "filter.next"),
    _key("N", "match(-1)", "previous match", "filter.previous"),
]
OUT = [
    _key("Y", "ask('copy')", "copy the verdict, the row or the value", "out.copy"),
    _key("w", "write('csv')", "export the loads of this step as CSV", "out.csv"),
    _key("W", "write('json')", "export this step as JSON", "out.json"),
    _key("S", "write('svg')", "export the screen as SVG", "out.svg"),
]
EVERYWHERE = [
    _key("1", "app.go('main')", "all layers", "screen.main"),
    _key("2", "app.go('layer')", "one layer", "screen.layer"),
    _key("3", "app.go('alerts')", "alerts", "screen.alerts"),
    _key("4,r", "app.go('runs')", "runs", "screen.runs", "r", first_of="runs"),
    _key("5", "app.go('compare')", "compare", "screen.compare"),
    _key("6", "app.go('course')", "loss and learning rate", "screen.course"),
    _key("9", "app.go('mismatch')", "mismatch of two probes", "screen.mismatch"),
    _key("ctrl+p", "app.command_palette", "all commands", "app.palette"),
    _key("ctrl+l", "app.repaint", "repaint the screen", "app.repaint"),
    _key("question_mark", "app.help", "help", "app.help", "?"),
    _key("q", "app.quit", "quit", "app.quit", "q"),
]
BACK = _key("escape", "back", "back", "screen.back", "esc")
OPEN_LAYER = _key("enter", "open_layer", "open the layer", "layer.open", "⏎", first_of="open")
OPEN_EXPERT = _key("enter", "open_expert", "open the expert", "expert.open", "⏎", first_of="expert")

MAIN = [
    *LAYERS,
    OPEN_LAYER,
    *EXPERTS,
    *ALERTS,
    *TIME,
    *LOOK,
    *FILTER,
    *OUT,
    _key("escape", "clear", "clear the filter and the cursor", "main.clear"),
    *EVERYWHERE,
]
LAYER = [
    BACK,
    LAYERS[0],
    OPEN_EXPERT,
    *LAYERS[1:],
    *EXPERTS,
    _key("tab", "focus_chart(1)", "next chart", "chart.next", "tab", first_of="chart"),
    _key("shift+tab", "focus_chart(-1)", "previous chart", "chart.previous"),
    _key("z", "enlarge", "enlarge the chart", "chart.enlarge"),
    _key("e", "smooth", "smooth the curves", "chart.smooth"),
    *ALERTS,
    *TIME,
    *OUT,
    *EVERYWHERE,
]
EXPERT = [
    BACK,
    _key(
        "left,h,up,k", "expert(-1)", "previous expert", "expert.previous", "←→", first_of="expert"
    ),
    _key("right,l,down,j", "expert(1)", "next expert", "expert.next"),
    *TIME,
    *OUT,
    *EVERYWHERE,
]
ALERT_LIST = [
    BACK,
    _key("up,k", "move(-1)", "previous alert", "alert.up", "↑↓", first_of="alert"),
    _key("down,j", "move(1)", "next alert", "alert.down"),
    _key("home,g", "move(-9999)", "first alert", "alert.first"),
    _key("end,G", "move(9999)", "last alert", "alert.last"),
    _key("enter", "open_onset", "show the layer at the onset", "alert.open", "⏎", first_of="onset"),
    _key("A", "acknowledge", "mark the alert as seen", "alert.acknowledge", "A", first_of="seen"),
    *FILTER,
    *OUT,
    *EVERYWHERE,
]
COMPARE = [
    BACK,
    *LAYERS,
    OPEN_LAYER,
    _key("b", "compare", "compare with this step", "look.compare", "b", first_of="from here"),
    _key("c", "look('palette')", "palette", "look.palette"),
    *TIME,
    *FILTER,
    *OUT,
    *EVERYWHERE,
]
COURSE = [
    BACK,
    _key("tab", "focus_chart(1)", "next chart", "chart.next", "tab", first_of="chart"),
    _key("shift+tab", "focus_chart(-1)", "previous chart", "chart.previous"),
    _key("z", "enlarge", "enlarge the chart", "chart.enlarge", "z", first_of="enlarge"),
    _key("e", "smooth", "smooth the curves", "chart.smooth", "e", first_of="smooth"),
    *ALERTS,
    *TIME,
    *OUT,
    *EVERYWHERE,
]
MISMATCH = [
    BACK,
    *LAYERS,
    _key(
        "b", "pinned", "choose the run to compare with", "mismatch.pinned", "b", first_of="pick A"
    ),
    *OUT[3:],
    *EVERYWHERE,
]
RUNS = [
    _key("escape", "back", "back", "screen.back", "esc"),
    _key("up,k", "move(-1)", "previous run", "run.previous", "↑↓", first_of="run"),
    _key("enter", "open_run", "open this run", "run.open", "⏎", first_of="open"),
    _key("down,j", "move(1)", "next run", "run.next"),
    _key("home,g", "move(-99999)", "first run", "run.first"),
    _key("end,G", "move(99999)", "last run", "run.last"),
    _key("pageup", "page(-1)", "one page up", "run.page_up"),
    _key("pagedown", "page(1)", "one page down", "run.page_down"),
    _key("space", "select", "select this run", "run.select", "space", first_of="select"),
    _key("s", "solo", "selected runs only; again: all", "run.solo", "s", first_of="solo"),
    _key("p", "pin", "compare the open run with this one", "run.pin", "p", first_of="pin"),
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
    return {
        "main": MAIN,
        "layer": LAYER,
        "expert": EXPERT,
        "alerts": ALERT_LIST,
        "runs": RUNS,
        "compare": COMPARE,
        "course": COURSE,
        "mismatch": MISMATCH,
        "waiting": WAITING,
        "help": HELP,
    }
