"""What every reader promises: its files are found, followed and read again, and no others."""

import os
from pathlib import Path

import pytest

from microscope_tui import sources
from microscope_tui.extensions.dumps import megatron
from microscope_tui.runlog import NoRuns
from microscope_tui.sources import dumps, step_rows, streamlit
from microscope_tui.sources.reader import RecordReader
from tests.sources.reading import counts_of, drained, header_of, model_of, restarted, settle
from tests.sources.sound import RUN, SOUND, Sound
from tests.sources.sqlite_writer import Writer

OTHER = [RUN[2], RUN[0]]
"""Another run, which is shorter."""
pytestmark = pytest.mark.parametrize("sound", SOUND, ids=lambda sound: sound.form)


@pytest.fixture(autouse=True)
def _only_a_settled_file_is_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: what counts is the age of the file, which the tests set."""
    monkeypatch.setattr(step_rows, "COMPLETE_AFTER_S", 1e6)
    monkeypatch.setattr(megatron, "COMPLETE_AFTER_S", 1e6)
    monkeypatch.setattr(dumps, "SETTLED_S", 1e6)
    monkeypatch.setattr(streamlit, "QUIET_S", 1e6)


def at_rest(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return settle(path, 1e7)


def found(folder: Path) -> sources.ForeignRun:
    (run,) = sources.Search(folder, sources.SourceRequest(num_experts=4, top_k=2)).runs()
    assert isinstance(run, sources.ForeignRun)
    return run


def opened(run: sources.ForeignRun) -> RecordReader:
    return run.form.open(run.file, run.run, run.name, run.request)


def test_a_run_is_found_by_the_name_of_its_file_and_has_the_counts_that_were_written(
    tmp_path: Path, sound: Sound
) -> None:
    path = at_rest(tmp_path / sound.file, sound.content(RUN))
    run = found(tmp_path)
    assert run.form.name == sound.form
    assert run.form.place_of(path) == run.file
    records = drained(opened(run))
    assert counts_of(records) == sound.steps(RUN)
    assert header_of(records)["source"]["counts"] == ("exact" if sound.times == 1 else "top1")
    assert model_of(records)["layers"] == [0, 1]


def test_a_file_of_any_name_is_recognised_by_its_format_alone(tmp_path: Path, sound: Sound) -> None:
    path = at_rest(tmp_path / "copy", sound.content(RUN))
    claimed = [name for name, form in sources.FORMATS.items() if form.reader.recognises(path)]
    assert claimed == [sound.form]
    assert sources.Search(tmp_path).runs() == []
    assert [run.path.name.partition("#")[0] for run in sources.Search(path).runs()] == ["copy"]


def test_a_growing_run_is_followed_step_by_step(tmp_path: Path, sound: Sound) -> None:
    path = at_rest(tmp_path / sound.file, sound.content(RUN[:1]))
    reader = opened(found(tmp_path))
    first = drained(reader)
    assert counts_of(first) == sound.steps(RUN[:1])
    for number in (2, 3):
        at_rest(path, sound.content(RUN[:number]))
        more = restarted(reader) if sound.is_read_whole else drained(reader)
        steps = [record["step"] for record in more if record["kind"] == "step"]
        whole = sound.steps(RUN[:number])
        assert steps == (list(whole) if sound.is_read_whole else [number])
        first = more if sound.is_read_whole else [*first, *more]
        assert counts_of(first) == whole
        assert (reader.offset, reader.exhausted) == (reader.size, True)
        assert reader.modified == pytest.approx(path.stat().st_mtime, abs=1e-3)


def test_a_torn_end_waits_for_the_rest_whatever_the_cut(tmp_path: Path, sound: Sound) -> None:
    path = at_rest(tmp_path / sound.file, whole := sound.content(RUN))
    run = found(tmp_path)
    expected = drained(opened(run))
    if sound.is_database:  # its torn end is an open transaction
        with Writer(path) as writer:
            writer.run("PRAGMA journal_mode=WAL", "BEGIN", "DELETE FROM metrics")
            settle(tmp_path, 1e7)
            assert drained(opened(run)) == expected
            writer.run("COMMIT")
            assert not drained(opened(run))
        return
    for cut in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:cut])
        reader = opened(run)
        records = list(reader.read().records)
        with path.open("ab") as file:
            file.write(whole[cut:])
        settle(path, 1e7)
        assert [*records, *drained(reader)] == expected, cut


def test_small_reads_give_the_same_records(tmp_path: Path, sound: Sound) -> None:
    at_rest(tmp_path / sound.file, sound.content(RUN))
    assert drained(opened(found(tmp_path)), 1) == drained(opened(found(tmp_path)))


def test_another_run_restarts_and_a_deleted_file_is_reported(tmp_path: Path, sound: Sound) -> None:
    path = at_rest(tmp_path / sound.file, sound.content(RUN))
    reader = opened(found(tmp_path))
    drained(reader)
    at_rest(path, sound.content(OTHER))
    assert counts_of(restarted(reader)) == sound.steps(OTHER)
    path.unlink()
    assert not reader.read().records
    assert (reader.deleted, reader.exhausted) == (True, True)
    at_rest(path, sound.content(RUN))
    assert counts_of(restarted(reader)) == sound.steps(RUN)
    assert not reader.deleted


def test_a_pipe_is_refused_at_once_and_no_link_is_followed(tmp_path: Path, sound: Sound) -> None:
    form, path = sources.FORMATS[sound.form], tmp_path / sound.file
    os.mkfifo(path)
    for refused in (path, tmp_path / "missing"):
        with pytest.raises(OSError, match=r"not a regular file|No such file"):
            form.reader.recognises(refused)
    assert sources.Search(tmp_path).runs() == []
    with pytest.raises(NoRuns, match="not a regular file"):
        sources.Search(path).runs()
    assert not form.reader.recognises(tmp_path)
    path.unlink()
    path.symlink_to(at_rest(tmp_path / "elsewhere", sound.content(RUN)))
    assert sources.Search(tmp_path).runs() == []
    assert not form.reader.recognises(tmp_path)
