"""The layouts of public training code, written by the real loggers, get the right proposal."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.sources import Keys
from microscope_tui.sources.wandb import WandbReader
from tests.peers.test_databases import ALONE, trackio_storage
from tests.peers.test_wandb import file_of, read_to_the_end, start
from tests.sources.layouts import LAYOUTS, OTHERS, Layout, nested, write
from tests.sources.reading import settle
from tests.sources.test_proposals import FOUND, assert_not_used_by_itself, assert_recognised


def wandb(folder: Path, layout: Layout) -> Path:
    pytest.importorskip("wandb")
    run = start(folder, layout.config)
    for step, _, row in layout.logged():
        run.log(nested(row, "."), step=step)
    run.finish()
    read_to_the_end(WandbReader(file_of(folder), Keys()))  # its service still writes
    return file_of(folder)


def tensorboard(folder: Path, layout: Layout) -> Path:
    pytest.importorskip("tensorboard")
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    for step, _, row in layout.logged():
        for tag, number in row.items():
            name, _, part = tag.partition("|")
            if part:
                writer.add_scalars(name, {part: number}, step)
            else:
                writer.add_scalar(name, number, step)
    writer.close()
    return folder


def trackio(folder: Path, layout: Layout) -> Path:
    pytest.importorskip("trackio")
    steps, _, rows = zip(*layout.logged(), strict=True)
    log = trackio_storage(folder).bulk_log
    log("moe", "run", list(rows), steps=list(steps), run_id="r")
    return next(folder.rglob("moe.db"))


def mlflow(folder: Path, layout: Layout) -> Path:
    pytest.importorskip("sqlalchemy")
    module: Any = pytest.importorskip("mlflow")
    client = module.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    run = client.create_run("0").info.run_id
    for step, at, row in layout.logged():
        numbers = [module.entities.Metric(k, x, int(at * 1000), step) for k, x in row.items()]
        client.log_batch(run, metrics=numbers)
    client.set_terminated(run)
    return folder / "mlflow.db"


LOGGERS = {log.__name__: log for log in (wandb, tensorboard, trackio, mlflow)}


@pytest.mark.filterwarnings("ignore")  # of the dependencies of mlflow
@pytest.mark.parametrize("layout", [*LAYOUTS, *OTHERS], ids=lambda layout: layout.name)
def test_what_a_real_logger_writes_is_recognised_or_not_used_by_itself(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (ALONE | {"TRACKIO_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    path = LOGGERS.get(layout.form, write)(tmp_path, layout)  # text has no logger
    settle(path)
    if layout in FOUND:
        assert_recognised(path, layout)
    else:
        assert_not_used_by_itself(path)
