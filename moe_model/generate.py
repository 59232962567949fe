"""Continue a text: sample one token after the other from a trained model.

    python -m moe_model.generate checkpoints/RUN/best --prompt "The " --temperature 0.8

The past is kept in a latent cache; the seed alone decides what comes out. Text goes to standard
output as it is written, speed to standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter
from torch import Tensor

from moe_model.command import FINISHED, UsageError, run_command, say, version
from moe_model.decoder import Decoder, Drafter
from moe_model.model import LanguageModel
from moe_model.plain_text import plain_text
from moe_model.store import CheckpointError, read_checkpoint
from moe_model.tokenizer import Tokenizer

WEIGHTS = {"fp32": torch.float32, "fp16": torch.float16}


class Sampler:
    """Iterates over the token ids that follow a prompt, each as soon as it is known.

    With drafts, one pass reads the last token together with a guess at the next one, from the
    model's multi-token prediction. Every token is still picked from the logits of the model, in the
    same order and with the same draws, so the text is the same; where the guess was right, the pass
    gave two tokens.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt_S: Tensor,
        *,
        max_new_tokens: int,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        weights: torch.dtype | None = None,
        draft: bool = False,
        stop_at: int | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            model: In evaluation mode while this is iterated, then as it was found.
            prompt_S: At least one token id, int64; of more than the context, the last count.
            max_new_tokens: How many tokens to sample.
            temperature: Divides the logits; 0 takes the likeliest token.
            top_p: Sample among the likeliest tokens that together hold this probability.
            seed: Of a generator of its own, so that sampling never disturbs training.
            weights: fp32 or fp16, see :class:`~moe_model.decoder.Decoder`; fp32 on a CPU if none.
            draft: Guess ahead; ``ValueError`` where the model cannot.
            stop_at: The token that ends a text; it is not given.
        """
        if not len(prompt_S):
            raise ValueError("prompt has 0 tokens: give at least one.")
        on_cpu = model.embed_tokens.weight.device.type == "cpu"
        if weights is None and on_cpu and not model.sharded:
            weights = torch.float32
        self.given = 0
        """Tokens given so far."""
        self.passes = 0
        """Passes through the model so far, the one that reads the prompt included."""
        self._model = model
        self._left, self._stop_at = max_new_tokens, stop_at
        self._rules = (temperature, top_p, torch.Generator().manual_seed(seed))
        self._context = model.config.max_position_embeddings
        self._ids = prompt_S.tolist()[-self._context :]
        self._decoder = Decoder(model, self._context, weights=weights)
        self._drafter = Drafter(self._decoder) if draft else None

    def __iter__(self) -> Iterator[int]:
        was_training = self._model.training
        self._model.eval()
        try:
            self._start_over(self._context)  # iterated again, it goes on where it stopped
            while self._left > 0:
                for token in self._until_full():
                    if token == self._stop_at:
                        return
                    self.given += 1
                    yield token
                # The context is full: go on from its second half, read again from position 0.
                self._start_over(max(1, self._context // 2))
        finally:
            self._model.train(was_training)

    def _until_full(self) -> Iterator[int]:
        """Tokens until there are enough, or the context is full."""
        drafter = self._drafter
        following = self._ids[1:]
        logits_SV, unseen_SD = self._read(self._ids)
        token = self._pick(logits_SV[-1])
        yield token
        while self._left and self._room:
            # What the drafter has not seen: hidden states, and the token after each.
            following.append(token)
            guess = None
            if drafter is not None and self._room >= 2:
                guess = drafter.propose(unseen_SD, following)
            logits_SV, unseen_SD = self._read([token] if guess is None else [token, guess])
            token = self._pick(logits_SV[0])
            yield token
            if guess is None:
                following = []
            elif token != guess or not self._left:
                self._decoder.forget(1)
                unseen_SD, following = unseen_SD[:1], []
            else:
                following = [token]
                token = self._pick(logits_SV[1])
                yield token

    def _start_over(self, tokens: int) -> None:
        """Forget what was read, and all but the last ``tokens``."""
        self._ids = self._ids[-tokens:]
        self._decoder.forget(self._decoder.cache.used)
        if self._drafter is not None:
            self._drafter.forget_all()

    def _read(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        self.passes += 1
        return self._decoder.read(ids)

    def _pick(self, logits_V: Tensor) -> int:
        token = pick(logits_V.cpu(), *self._rules)
        self._ids.append(token)
        self._left -= 1
        return token

    @property
    def _room(self) -> int:
        """Tokens that can still be read."""
        return self._context - self._decoder.cache.used


def generate(model: LanguageModel, prompt_S: Tensor, **options: Any) -> list[int]:
    """The token ids of a :class:`Sampler`, all at once."""
    return list(Sampler(model, prompt_S, **options))


def pick(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token id, sampled from the nucleus of ``softmax(logits_V / temperature)``."""
    if not logits_V.isfinite().all():
        raise ValueError("the logits are not finite: the model has diverged, use another one.")
    if temperature == 0:
        return int(logits_V.argmax())
    # The highest is 0, whatever it is divided by.
    probability_V, ids_V = (
        ((logits_V - logits_V.max()) / temperature).softmax(dim=-1).sort(descending=True)
    )
    # A token stays while the mass before it is below top_p: the likeliest always stays.
    mass_before_V = probability_V.cumsum(dim=-1) - probability_V
    probability_V = probability_V.masked_fill(mass_before_V >= top_p, 0.0)
    return int(ids_V[torch.multinomial(probability_V, 1, generator=generator)])


app = App(
    name="python -m moe_model.generate",
    help="Continue a text with a trained model.",
    version=version,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C: what was written so far is good."""


@app.default
def main(
    checkpoint: Path,
    /,
    *,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True, show_default=False)] = "\n",
    max_new_tokens: int = 400,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    weights: Literal["fp32", "fp16"] = "fp32",
    draft: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Continue a text with a trained model. The text goes to standard output as it is written.

    Args:
        checkpoint: Folder such as checkpoints/RUN/best, or a run: its latest.
        prompt: Text to continue (default: a line break).
        max_new_tokens: Tokens to sample.
        temperature: Divides the logits; 0 takes the likeliest token each time.
        top_p: Sample among the likeliest tokens that together hold this probability.
        seed: Same seed, same text.
        weights: fp32 rounds as the model does; fp16 reads half the memory, logits differ by 0.005.
        draft: Guess one token ahead: the same text in fewer passes. Needs a model trained with
            --mtp.
    """
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {max_new_tokens} writes nothing: choose 1 or more.")
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"--temperature {temperature} is out of range: choose 0 or more.")
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed} is out of range: choose 0 to 2^63 - 1.")
    if not 0 < top_p <= 1:
        raise UsageError(f"--top-p {top_p} is out of range: choose above 0, up to 1.")
    try:
        found = read_checkpoint(checkpoint)
        prompt_S = found.tokenizer.encode(prompt)
        model = found.load_model()
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    except ValueError as error:
        raise UsageError(f"--prompt {prompt!r}: {error}") from error
    if not len(prompt_S):
        raise UsageError("--prompt is empty: give at least one character.")
    try:
        sampler = Sampler(
            model,
            prompt_S,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            weights=WEIGHTS[weights],
            draft=draft,
            stop_at=found.tokenizer.end,
        )
    except ValueError as error:
        raise UsageError(f"--draft: {error}") from error
    return _write(sampler, found.tokenizer, prompt)


def _write(sampler: Sampler, tokenizer: Tokenizer, prompt: str) -> int:
    """Write the text as it comes; how fast it was goes to standard error."""
    started = time.perf_counter()
    code = FINISHED
    try:
        put(prompt)
        for text in pieces(sampler, tokenizer):
            put(text)
        put("\n")
    except ValueError as error:
        raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        put("\n")
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # whoever read has enough; nothing to flush
    given, seconds = sampler.given, time.perf_counter() - started
    say(
        f"{given} tokens in {seconds:.1f} s, {given / seconds:.1f} tokens/s, "
        f"{given / max(1, sampler.passes):.2f} tokens a pass"
    )
    return code


def pieces(ids: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of ``ids`` bit by bit, whole characters only.

    A token may be part of a character, and a space may depend on the token before: so the text of
    all tokens since the last line break is decoded again, and what is new in it is handed out.
    """
    line: list[int] = []
    written = 0
    for token in ids:
        line.append(token)
        text = tokenizer.decode(line)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            continue
        yield text[written:]
        written = len(text)
        if text.endswith("\n"):
            line, written = [], 0
    if line:
        yield tokenizer.decode(line)[written:]


def put(text: str) -> None:
    """Write to standard output at once; on a terminal without what could steer it.

    Piped, the text is data and stays as it is.
    """
    if sys.stdout.isatty():
        text = plain_text(text, multi_line=True)
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run_command(app, None))
