"""The worked example of CONTRIBUTING.md is a format: its code runs and reads a table."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from microscope_tui.sources import Keys, Search, catalogue
from tests.sources.reading import all_rows, counts_of, drained, restarted, settle
from tests.sources.sound import RUN, SOUND

TEXT = Path(__file__).resolve().parents[2].joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
CODE, ROW = re.findall(r"```python\n(.*?)```", TEXT.partition("CSV in 30 lines")[2], re.DOTALL)[:2]
(CSV,) = (sound for sound in SOUND if sound.form == "csv")


def test_a_table_is_found_and_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("microscope_tui.sources.table")
    exec(CODE, module.__dict__)
    form = eval(ROW, {"Format": catalogue.Format})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(catalogue, "_FORMATS", (form,))
    monkeypatch.setattr(catalogue, "FORMATS", {form.name: form})
    monkeypatch.setattr(catalogue, "_file_names", catalogue._file_names.__wrapped__)
    path = tmp_path / "run.table"
    path.write_bytes(CSV.content(RUN[:2]))
    (run,) = Search(tmp_path).runs()
    source = run.form.open(run.file, run.run, run.name, run.request)  # type: ignore[attr-defined]
    settle(path)
    assert counts_of(first := drained(source)) == CSV.steps(RUN[:2])
    path.write_bytes(CSV.content(RUN))
    settle(path)
    assert counts_of([*first, *drained(source)]) == CSV.steps(RUN)
    path.write_bytes(CSV.content(RUN[::-1]))
    settle(path)
    assert counts_of(restarted(source)) == CSV.steps(RUN[::-1])
    path.write_bytes(b"step,loss\n1,2\n2\n-1,3\n4,5\n")
    assert not form.reader.recognises(path)
    table = form.reader(path, Keys())
    assert [row.step for row in all_rows(table)] == [1, 4]
    assert table.defects.count == 2  # a short row, and a step below 0
