"""Asks the terminal whether it supports synchronised output (mode 2026).

A terminal answers on standard input, as if the answer were typed. It is read without echo and with
a timeout, and the terminal settings are always restored.
"""

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Mapping

PATIENCE_S = 0.3
_QUESTION = b"\x1b[?2026$p"
_ANSWER = re.compile(rb"\x1b\[\?2026;(\d)\$y")
_KNOWN = (b"1", b"2", b"3")  # set, not set, always set; 0 is unknown, 4 never
_WOULD_PRINT = ("", "dumb", "unknown", "linux")


def synchronised_output(environment: Mapping[str, str]) -> str:
    """``yes``, ``no``, ``no answer``, or why the terminal was not asked."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "not asked: no terminal"
    apple = environment.get("TERM_PROGRAM") == "Apple_Terminal"
    if apple or environment.get("TERM", "") in _WOULD_PRINT:
        return "not asked: this terminal would print the query"
    question, answer = sys.stdout.fileno(), sys.stdin.fileno()
    try:
        if os.tcgetpgrp(answer) != os.getpgrp():
            return "not asked: in the background"
        sys.stdout.flush()
        return ask(question, answer)
    except (OSError, termios.error) as error:
        return f"not asked: {getattr(error, 'strerror', None) or error}"


def ask(question: int, answer: int, patience_s: float = PATIENCE_S) -> str:
    """Ask on one descriptor, listen on the other, both of the same terminal."""
    before = termios.tcgetattr(answer)
    leave = termios.TCSAFLUSH  # a late answer must not be typed into the shell
    try:
        tty.setcbreak(answer, termios.TCSADRAIN)  # Ctrl-C still works
        os.write(question, _QUESTION)
        heard, until = b"", time.monotonic() + patience_s
        while (left := until - time.monotonic()) > 0 and select.select([answer], [], [], left)[0]:
            more = os.read(answer, 256)
            heard += more
            if found := _ANSWER.search(heard):
                leave = termios.TCSADRAIN
                return "yes" if found[1] in _KNOWN else "no"
            if not more:
                break
        return "no answer"
    finally:
        termios.tcsetattr(answer, leave, before)
