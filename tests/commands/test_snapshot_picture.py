"""``snapshot``: the format by the name of the file, and pictures for a paper."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from microscope_tui.commands.config import default_config
from microscope_tui.commands.console import USAGE
from microscope_tui.kit.light import LIGHT
from microscope_tui.kit.palette import DARK
from tests.conftest import Call

BOTH = ("snapshot", "export")


@pytest.fixture
def run(scenario: Callable[..., Path]) -> Path:
    return scenario("healthy", routers=3, steps=20)


@pytest.mark.parametrize(
    ("name", "given", "begins"),
    [
        *(("x.svg", "", "<svg"), ("x.SVG", "", "<svg"), ("x.json", "", "{"), ("x.txt", "", " ")),
        *(("svg", "", " "), ("x.svg", "svg", "<svg"), ("x.data", "json", "{")),
    ],
)
def test_a_file_has_the_format_that_its_name_ends_in(
    call: Call, run: Path, tmp_path: Path, name: str, given: str, begins: str
) -> None:
    format_ = ("--format", given) if given else ()
    assert call("snapshot", run, "-o", tmp_path / name, *format_)[0] == 0
    text = (tmp_path / name).read_text()
    assert text.startswith(begins)
    if begins == "{":
        assert json.loads(text)["step"] == 20


@pytest.mark.parametrize(("name", "given"), [("x.svg", "text"), ("x.json", "svg")])
def test_a_name_that_contradicts_the_format_is_refused(
    call: Call, run: Path, tmp_path: Path, name: str, given: str
) -> None:
    path = tmp_path / name
    code, out, err = call("snapshot", run, "-o", path, "--format", given)
    assert (code, out) == (USAGE, "")
    assert f"-o {path}: the name ends in {path.suffix}, but --format is {given}" in err
    assert not path.exists()


@pytest.mark.parametrize(
    ("command", "name", "instead"),
    [
        *(("snapshot", f"x.{ending}", f"export -o NAME.{ending}") for ending in ("csv", "parquet")),
        *(("export", f"x.{ending}", f"snapshot -o NAME.{ending}") for ending in ("svg", "json")),
        *((command, "x.xlsx", "export -o NAME.csv") for command in BOTH),
        *((command, "x.html", "snapshot -o NAME.svg") for command in BOTH),
        *((command, "x.PNG", "snapshot -o NAME.svg, then `rsvg-convert") for command in BOTH),
        *((command, "x.pdf", "snapshot -o NAME.svg, then `rsvg-convert") for command in BOTH),
    ],
)
def test_an_ending_that_a_command_does_not_write_is_refused_and_says_what_does(
    call: Call, run: Path, tmp_path: Path, command: str, name: str, instead: str
) -> None:
    path = tmp_path / name
    code, out, err = call(command, run, "-o", path)
    assert (code, out, err.count("\n")) == (USAGE, "", 1)
    assert f"-o {path}: this command writes no {path.suffix.lower()}; use {instead}" in err
    assert not path.exists()


def test_a_picture_has_the_colours_of_the_theme(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    picture = ("snapshot", run, "--format", "svg")
    assert f'fill="{DARK.ground.true}"' in call(*picture)[1]
    assert f'fill="{LIGHT.ground.true}"' in call(*picture, "--theme", "light")[1]
    default_config().parent.mkdir()
    default_config().write_text('[view]\ntheme = "light"\n')
    assert f'fill="{LIGHT.ground.true}"' in call(*picture)[1]
    assert f'fill="{DARK.ground.true}"' in call(*picture, "--theme", "dark")[1]


def test_a_window_is_drawn_only_on_request_and_around_a_picture(call: Call, run: Path) -> None:
    assert "<circle" not in call("snapshot", run, "--format", "svg")[1]
    assert "<circle" in call("snapshot", run, "--format", "svg", "--frame")[1]
    code, _, err = call("snapshot", run, "--frame")
    assert code == USAGE
    assert "add --format svg" in err
