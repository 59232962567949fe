"""Draw docs/screenshots: build products, so that they cannot go stale.

    make screenshots          (or: python docs/draw_screenshots.py [RUN_FOLDER])

The screens of the README show a real run: without an argument the script first trains the tiny
preset with 64 experts a layer for 300 steps with ``--force-collapse 3@100``, ten minutes on two
cores. The pictures of
docs/reading.md show synthetic runs with known truth, one per kind of trouble; those of the probe,
of a model that trains for longer, are drawn by ``python -m benchmarks.anatomy --pictures``.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# The exporter paints in truecolor whatever the terminal; the palette has to be chosen for that.
os.environ["TEXTUAL_COLOR_SYSTEM"] = "truecolor"
os.environ.pop("NO_COLOR", None)

from msgspec.structs import replace

from microscope_tui.app.picture import draw
from microscope_tui.kit.session import PictureRequest
from microscope_tui.scenarios import write_run
from microscope_tui.watch import Fleet

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "screenshots"
PICTURES = {
    "main": PictureRequest("main", 112, 34),
    "course": PictureRequest("course", 112, 34),
    "map": PictureRequest("map", 112, 24),
    "collapse-animated": PictureRequest("main", 120, 34, played=range(80, 151, 2)),
}
_SMALL = PictureRequest("main", 100, 24)
TROUBLES = {
    "collapse": _SMALL,
    "slow-collapse": _SMALL,
    "shock": replace(_SMALL, step=765),
    "dead-experts": _SMALL,
    "starving-finetune": _SMALL,
    "hot-expert": _SMALL,
    "overflow": _SMALL,
    "rank-skew": _SMALL,
    "bias-limit-cycle": _SMALL,
    "bias-runaway": _SMALL,
    "divergence": PictureRequest("course", 100, 24),
    "dead-gradient": _SMALL,
    "double-counting": _SMALL,
    "lint-no-balance": _SMALL,
}
"""Scenarios of docs/reading.md, and what to draw of each."""


def main() -> None:
    asyncio.run(draw_troubles())
    if len(sys.argv) > 1:
        asyncio.run(draw_all(Path(sys.argv[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--preset", "tiny", "--steps", "300"]
        command += ["--force-collapse", "3@100", "--run", "tiny-collapse"]
        command += ["--model.n_routed_experts", "64", "--model.num_experts_per_tok", "8"]
        command += ["--log-dir", folder, "--checkpoint-dir", f"{folder}/checkpoints"]
        subprocess.run(command, check=True, cwd=ROOT)
        asyncio.run(draw_all(Path(folder) / "tiny-collapse"))


async def draw_all(run: Path) -> None:
    """Every picture of ``PICTURES``."""
    FOLDER.mkdir(exist_ok=True)
    for name, wanted in PICTURES.items():
        path = FOLDER / f"{name}.svg"
        path.write_text((await draw(Fleet(run), wanted)).svg, encoding="utf-8")
        print(path.relative_to(ROOT))


async def draw_troubles() -> None:
    """Every picture of ``TROUBLES``."""
    folder = FOLDER / "reading"
    folder.mkdir(parents=True, exist_ok=True)
    for scenario, wanted in TROUBLES.items():
        with tempfile.TemporaryDirectory() as logs:
            write_run(Path(logs) / scenario, scenario)
            picture = await draw(Fleet(Path(logs) / scenario), wanted)
        (folder / f"{scenario}.svg").write_text(picture.svg, encoding="utf-8")
        print((folder / f"{scenario}.svg").relative_to(ROOT))


if __name__ == "__main__":
    main()
