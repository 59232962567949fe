"""The filter typed after ``/``: words that a name must contain, and words it must not.

* ``moe 1``: both words are somewhere in the name; case never matters
* ``!dense``: the name must not contain this word
"""


def matches(pattern: str, text: str) -> bool:
    """All conditions of ``pattern`` hold for ``text``; pass it through ``safe_text`` to show it."""
    folded = text.casefold()
    words = [word for word in pattern.casefold().split() if word != "!"]
    return all((word.removeprefix("!") in folded) is not word.startswith("!") for word in words)
