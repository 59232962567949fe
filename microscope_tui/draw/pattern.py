"""The filter typed after ``/``: words that a name must contain, words it must not, and globs.

* ``moe 1``: both words are somewhere in the name; case never matters
* ``!dense``: the name must not contain this word
* ``L1*``, ``*.moe``, ``L?``: a word with ``*`` (any characters) or ``?`` (one character) is a glob
  and must equal one of the words of the name, from its beginning to its end
* ``!L1*``: no word of the name may match

Nothing that is typed can hang: since Python 3.11 ``fnmatch`` never backtracks past a ``*``.
"""

from fnmatch import fnmatchcase


def matches(pattern: str, text: str) -> bool:
    """All conditions of ``pattern`` hold for ``text``; pass it through ``safe_text`` to show it."""
    folded = text.casefold()
    return all(_holds(word, folded) for word in pattern.casefold().split() if word != "!")


def _holds(word: str, text: str) -> bool:
    wanted = word.removeprefix("!")
    if "*" in wanted or "?" in wanted:
        glob = wanted.replace("[", "[[]")  # no set of characters
        found = any(fnmatchcase(part, glob) for part in text.split())
    else:
        found = wanted in text
    return found is not word.startswith("!")
