"""Renders chats in a process of its own: JSON in, JSON out. See ``chat.py``, which starts it.

It imports nothing of this project, so that it runs wherever this file is.
"""

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 2**22


def main() -> None:
    """Render what standard input asks for; the alarm ends the process where that takes too long."""
    job = json.load(sys.stdin)
    try:
        from transformers.utils import chat_template_utils  # noqa: F401  # before the clock runs
    except ImportError as error:
        answer: dict[str, Any] = {"error": f"{error}: pip install 'moe-microscope[train]'"}
    else:
        _limit_memory(job["bytes"])
        # Without a handler the alarm needs no help of Python, which may be busy in a single
        # multiplication.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        answer = answer_to(job)
    json.dump(answer, sys.stdout)


def answer_to(job: dict[str, Any]) -> dict[str, Any]:
    """``rendered``, a text per conversation, or ``error``, in one line or more."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered = render_jinja_template(
            job["conversations"],
            chat_template=job["chat_template"],
            add_generation_prompt=True,
            **job["special_tokens"],
        )[0]
    except MemoryError:
        return {"error": f"it needs more than {job['bytes'] >> 20} MB"}
    except Exception as error:  # a template can raise anything
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    if sum(map(len, rendered)) > MOST_CHARACTERS:
        return {"error": f"it wrote more than {MOST_CHARACTERS:,} characters"}
    return {"rendered": rendered}


def _limit_memory(more: int) -> None:
    """Let this process have ``more`` bytes beside those it has, where it can tell those."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text("ascii").split()[0]) * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
