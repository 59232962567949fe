"""``--trace-sample``: the sample of a finished run, with the experts of every token."""

from collections.abc import Callable
from pathlib import Path

from microscope_tui.extensions.anatomy.routing_file import Routing
from tests.training.story import Capsys

PROMPT = "the 5 of " * 3


def test_the_sample_is_traced(train: Callable[..., int], tmp_path: Path, capsys: Capsys) -> None:
    assert train("--run=r", "--steps=2", "--trace-sample", f"--sample-prompt={PROMPT}") == 0
    narration = capsys.readouterr().err
    assert "moe-microscope" in narration.split("trace  ")[1]
    with Routing(tmp_path / "logs" / "r-sample" / "routing.bin") as routing:
        assert routing.slices == ("prompt", "sample")
        text = b"".join(routing.text(0, routing.tokens)).decode()
        assert text.startswith(PROMPT)
        of_slices = routing.slices_of(0, routing.tokens)
        assert of_slices == (0,) * 27 + (1,) * (routing.tokens - 27)
        assert text[27:38] in narration
        assert routing.window_of(routing.tokens - 1) > 0  # 32 tokens are its context
    assert train("--run=untraced", "--steps=1") == 0
    assert not (tmp_path / "logs" / "untraced-sample").exists()


def test_a_trace_that_cannot_be_written_does_not_fail_the_run(
    train: Callable[..., int], tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "logs" / "r-sample").mkdir(parents=True)
    assert train("--run=r", "--steps=2", "--trace-sample") == 0
    assert "no trace: " in capsys.readouterr().err
    assert not list((tmp_path / "logs" / "r-sample").iterdir())
