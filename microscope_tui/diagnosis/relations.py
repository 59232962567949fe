"""Required relations between the limits of a rule, and phrases for what breaks otherwise."""

Relations = tuple[tuple[str, str], ...]
"""``low < high`` or ``low <= high``, each side the name of a limit or a number; and the consequence
of breaking it, which the error message shows after "or".
"""

NEVER = "it could never fire"
NEVER_ENDS = "its episodes would never end"
SILENT_CUT = "it would be truncated silently"
ENDS_INSIDE = "an episode would end inside its own limit"
CRITICAL_FIRST = "it would be critical before it is a warning"
