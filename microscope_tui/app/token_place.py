"""What is typed after ``:`` in the text of a probe: a token, or an expert of the shown layer.

* ``12345`` ``12k`` ``50%`` ``+100`` ``first`` ``last``: a token, as in ``place``
* ``e17``: the next token of expert 17
"""

import re
from dataclasses import dataclass

from microscope_tui.app.place import (
    AtEnd,
    AtShare,
    AtStep,
    BadPlace,
    FromShown,
    parse_place,
)
from microscope_tui.runlog import safe_text


@dataclass(frozen=True, slots=True)
class OfExpert:
    """The next token that chose this expert."""

    expert: int


def parse_token(text: str, *, shown: int, tokens: int, experts: int) -> int | OfExpert:
    """The token, or the expert, that ``text`` means.

    Raises:
        BadPlace: it means none in a text of so many tokens; the message says what to type.
    """
    typed = text.strip()
    if found := re.fullmatch(r"[eE#] ?([0-9]{1,6})", typed):
        if (expert := int(found[1])) >= experts:
            raise BadPlace(f"no expert {expert:,}: there are 0 to {experts - 1:,}")
        return OfExpert(expert)
    if typed.lower() == "first":
        return 0
    try:
        place = parse_place(typed)
    except BadPlace:
        place = None
    match place:
        case AtStep(wanted):
            if wanted >= tokens:
                raise BadPlace(f"no token {wanted:,}: there are 0 to {tokens - 1:,}")
        case AtShare(share):
            wanted = round(share * (tokens - 1))
        case FromShown(by):
            wanted = shown + by
        case AtEnd():
            wanted = tokens - 1
        case _:
            said = safe_text(typed or "nothing", 24)
            raise BadPlace(f"{said} is not a token: try 12k, 50%, -100, last, or e17 for expert 17")
    return max(0, min(tokens - 1, wanted))
