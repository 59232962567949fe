"""Chat templates: the Jinja program that turns the messages of a chat into a prompt.

The template is a program written by the publisher of the model. It runs in the sandbox of
transformers, in a separate process limited to 5 seconds and 512 MB (the latter on Linux only), and
only if you ask for it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from moe_model.pretrained_tokenizer import PretrainedTokenizer
from moe_model.tokenizer import Tokenizer

SECONDS = 5.0
"""Time limit, counted from the end of the import of transformers."""
MOST_BYTES = 512 * 2**20
_PROGRAM = Path(__file__).with_name("render_chat.py")


def encode_chats(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[Tensor]:
    """Token ids of a chat for each prompt: the prompt as a user message, and the start of the
    answer.

    Raises:
        ValueError: If the tokenizer has no chat template, or it fails or takes too long.
    """
    if not isinstance(tokenizer, PretrainedTokenizer) or (
        (template := tokenizer.chat_template) is None
    ):
        raise ValueError("this model has no chat template: omit --chat.")
    # The template has already added the special tokens.
    encoded = [
        tokenizer.encode(text, add_special_tokens=False)
        for text in _rendered(template, tokenizer.special_tokens, prompts)
    ]
    if not all(map(len, encoded)):
        raise ValueError("the chat template produces no text: omit --chat.")
    return encoded


def _rendered(template: str, special_tokens: dict[str, str], prompts: Sequence[str]) -> list[str]:
    job = {
        "conversations": [[{"role": "user", "content": prompt}] for prompt in prompts],
        "chat_template": template,
        "special_tokens": special_tokens,
        "seconds": SECONDS,
        "bytes": MOST_BYTES,
    }
    # -P: Python must not import the modules of this folder.
    done = subprocess.run(
        [sys.executable, "-P", _PROGRAM], input=json.dumps(job).encode(), capture_output=True
    )
    if done.returncode == -signal.SIGALRM:
        raise ValueError(
            f"the chat template did not finish within {SECONDS:g} s: omit --chat, or use a model "
            "whose template you trust."
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ValueError(
            f"the chat template was not rendered (exit code {done.returncode}, {lines[-1]}): omit "
            "--chat."
        ) from error
    if "error" in answer:
        raise ValueError(f"the chat template failed ({answer['error']}): omit --chat.")
    rendered: list[str] = answer["rendered"]
    return rendered
