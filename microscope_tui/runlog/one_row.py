"""The counts of one router out of a line, without decoding those of the others.

A rule that suspects one of 58 routers, step after step, would otherwise decode all of them. Only a
matrix that looks exactly as writers write it is cut up like this; anything else is for the decoder.
"""

import msgspec

_KEY = b'"tokens_per_expert":'


class CountRows:
    """Where the rows of counts begin in one line."""

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
                return  # something else than a row, or a list within one
            starts.append(at)
            if (end := line.find(b"]", at)) < 0:
                return
        # Behind the last row the matrix and the record end.
        if len(starts) == routers and line[end + 1 :].translate(None, b" ") == b"]}":
            self._starts = starts

    def row(self, index: int) -> list[int] | None:
        """The counts of router ``index``; ``None`` where they cannot be told for sure."""
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
