"""Every reader gets to the end of any log, whatever it contains."""

from pathlib import Path

import pytest

from microscope_tui.commands.check.report import judge
from microscope_tui.runlog import RunFile
from microscope_tui.watch import RunWatch, view_of
from tests.conftest import open_log
from tests.hostile.poison import HEADER, STEP


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 64 + b'{"kind":"step","step":2,"tokens":8,"tokens_per_expert":[[8,0]]}',
        b'{"kind":"step","step":2,"x":"\xff\xfe","tokens_per_expert":[[8,0]]}',
        b'{"kind":"step","step":2,"x":' + b"9" * 5000 + b',"tokens_per_expert":[[8,0]]}',
        b'{"kind":"step","step":2,"tokens_per_expert":[[' + b"9" * 5000 + b",0]]}",
        b'{"kind":"step","step":2,"tokens":1e-308,"tokens_per_expert":[[8,0]]}',
    ],
)
@pytest.mark.parametrize("with_header", [True, False])
def test_a_line_that_only_one_decoder_can_read_costs_its_counts_at_most(
    tmp_path: Path, line: bytes, with_header: bool
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes((HEADER if with_header else b"") + line + b"\n" + STEP % 3)
    watch = open_log(path)
    assert view_of(watch).step == 3
    assert view_of(watch).layers[0].counts == [4, 4]


def test_a_model_without_routers_can_train_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = b"".join(b'{"kind":"step","step":%d,"loss":1.0}\n' % n for n in range(1, 9000))
    path.write_bytes(b'{"kind":"run","format_version":1,"model":{"layers":[]}}\n' + steps)
    watch = open_log(path)
    assert view_of(watch).step == 8999
    assert judge(RunFile("r", path, 0.0)).exit_code == 3  # nothing measured is no all-clear


def test_another_format_version_stays_refused_however_long_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = b"".join(STEP % n for n in range(1, 9000))
    path.write_bytes(b'{"kind":"run","format_version":2,"model":{"layers":[1]}}\n' + steps)
    watch = RunWatch(RunFile("r", path, 0.0))
    while watch.advance(4096):
        assert "format_version is 2" in (watch.error or "")
    path.write_bytes(b'{"kind":"run","format_version":1,"model":{"layers":[1]}}\n' + STEP % 1)
    watch.read_all()
    assert watch.error is None
