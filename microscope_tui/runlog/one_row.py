"""Decodes the counts of one router of a line without those of the others.

A rule that suspects one of 58 routers step after step would otherwise decode all of them. Only a
matrix in the writers' usual form is cut up like this; anything else goes to the decoder.
"""

import msgspec

_KEY = b'"tokens_per_expert":'


class CountRows:
    """Offsets of the rows of counts in one line."""

    def __init__(self, line: bytes, routers: int) -> None:
        self._line = line
        self._starts: list[int] = []
        """Offsets of the opening brackets, one per router; empty for an unusual line."""
        at = line.rfind(_KEY)
        at = -1 if at < 0 else line.find(b"[", at + len(_KEY))
        if at < 0 or line[at - 1 : at] not in (b":", b" "):
            return
        starts: list[int] = []
        end = at
        while (at := line.find(b"[", at + 1)) >= 0 and len(starts) <= routers:
            if line[end + 1 : at].translate(None, b" ") != (b"," if starts else b""):
                return  # not a row, or a nested list
            starts.append(at)
            if (end := line.find(b"]", at)) < 0:
                return
        # Behind the last row the matrix and the record end.
        if len(starts) == routers and line[end + 1 :].translate(None, b" ") == b"]}":
            self._starts = starts

    def row(self, index: int) -> list[int] | None:
        """The counts of router ``index``; ``None`` if they are not certain."""
        if not 0 <= index < len(self._starts):
            return None
        start = self._starts[index]
        end = self._line.find(b"]", start)
        if self._line.find(b"{", start, end) >= 0:
            return None
        try:
            row = msgspec.json.decode(self._line[start : end + 1])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if not row or set(map(type, row)) != {int} or min(row) < 0 or max(row) >= 2**62:
            return None
        return list(row)
