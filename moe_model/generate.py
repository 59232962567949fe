"""Continue a text with a trained model, token by token.

    python -m moe_model.generate checkpoints/RUN/best --prompt "The " --temperature 0.8

Text goes to standard output as it is generated, speed to standard error.
"""

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from moe_model.command import FAILED, FINISHED, UsageError, need_packages, run_command, say, version

if __name__ == "__main__":
    need_packages("python -m moe_model.generate")

import torch

from moe_model.command import DeviceName, choose_device, plain_text
from moe_model.sampling import Sampler, SamplingRules
from moe_model.store import read_checkpoint
from moe_model.tokenizer import Tokenizer

app = App(
    name="python -m moe_model.generate",
    help="Continue a text with a trained model.",
    version=version,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C; the text written so far is valid."""


@app.default
def main(
    checkpoint: Path,
    /,
    *,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True, show_default=False)] = "\n",
    max_new_tokens: Annotated[int, Parameter(validator=Number(gte=1))] = 400,
    rules: Annotated[SamplingRules, Parameter(name="*")] = SamplingRules(),  # noqa: B008  # frozen
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**63))] = 0,
    device: DeviceName = "auto",
    weights: Literal["fp32", "fp16"] = "fp32",
    draft: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Continue a text with a trained model. The text goes to standard output as it is generated.

    Args:
        checkpoint: Folder such as checkpoints/RUN/best, or a run for its latest checkpoint.
        prompt: Text to continue (default: a line break).
        max_new_tokens: Number of tokens to sample.
        rules: See SamplingRules.
        seed: Same seed, same text.
        device: auto uses a GPU if there is one.
        weights: fp32 rounds as the model does; fp16 halves the memory traffic, logits differ by
            about 0.005. For a CPU.
        draft: Draft one token ahead: the same text (in fp32) in fewer forward passes. Needs a model
            trained with --mtp.

    Raises:
        UsageError: If the checkpoint is missing or damaged, or an option does not fit it or the
            device.
    """
    place = choose_device(device)
    if weights == "fp16" and place.type != "cpu":
        raise UsageError(f"--weights fp16 is for a CPU, not for {place.type}: use fp32.")
    try:
        found = read_checkpoint(checkpoint)
        prompt_S = found.tokenizer.encode(prompt)
        sampler = Sampler(
            found.load_model(place),
            prompt_S,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop_at=found.stop_ids,
            weights=torch.float16 if weights == "fp16" else None,
            draft=draft,
            **dataclasses.asdict(rules),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    following = pieces(sampler, found.tokenizer, prompt_S.tolist())
    return _write(chain([prompt], following), sampler)


def _write(texts: Iterable[str], sampler: Sampler) -> int:
    started = time.perf_counter()
    code = FINISHED
    try:
        try:
            for text in texts:
                put(text)
        except KeyboardInterrupt:
            code = INTERRUPTED
        put("\n")
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        sys.stdout = None  # nothing to flush
        if not isinstance(error, BrokenPipeError):  # else the reader has closed the pipe
            say(f"standard output: {error.strerror}")
            code = FAILED
    given = sampler.given
    seconds = time.perf_counter() - started
    say(
        f"{given} tokens in {seconds:.1f} s, {given / seconds:.1f} tokens/s, "
        f"{given / max(1, sampler.passes):.2f} tokens a pass"
    )
    return code


def pieces(ids: Iterable[int], tokenizer: Tokenizer, prompt_ids: list[int]) -> Iterator[str]:
    """Decode ``ids`` incrementally, in whole characters.

    A token may be part of a character, and a space may depend on the token before. So all tokens
    from the last of the prompt or line before on are decoded again, and the new part is yielded.
    """
    line = prompt_ids[-1:]
    written = len(tokenizer.decode(line))
    for token in ids:
        line.append(token)
        text = tokenizer.decode(line)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            continue
        yield text[written:]
        if text.endswith("\n"):
            line = [token]
            text = tokenizer.decode(line)
        written = len(text)
    if len(line) > 1:
        yield tokenizer.decode(line)[written:]


def put(text: str) -> None:
    """Write to standard output at once; on a terminal without control characters.

    What is piped is data and stays as it is.
    """
    if sys.stdout.isatty():
        text = plain_text(text, multi_line=True)
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run_command(app, None))
