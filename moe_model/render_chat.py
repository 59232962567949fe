"""Render chats in a separate process: JSON in, JSON out. Started by ``chat.py``.

It imports nothing from this project.
"""

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 2**22


def main() -> None:
    """Render the job on standard input; an alarm ends the process if that takes too long."""
    job = json.load(sys.stdin)
    try:
        from transformers.utils import chat_template_utils  # noqa: F401  # before the clock runs
    except ImportError as error:
        answer: dict[str, Any] = {"error": f"{error}: pip install 'moe-microscope[train]'"}
    else:
        _limit_memory(job["bytes"])
        # Without a handler the alarm works even while Python is busy in a single
        # multiplication.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        answer = answer_to(job)
    json.dump(answer, sys.stdout)


def answer_to(job: dict[str, Any]) -> dict[str, Any]:
    """``rendered``, one text per conversation, or ``error``."""
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
        return {"error": f"it produced more than {MOST_CHARACTERS:,} characters"}
    return {"rendered": rendered}


def _limit_memory(more: int) -> None:
    """Limit this process to ``more`` bytes beyond its present memory, if that is known."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text("ascii").split()[0]) * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
