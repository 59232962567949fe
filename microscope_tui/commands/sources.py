"""``moe-microscope sources``: what other tools' files are understood, and what each can show."""

import json
from typing import Annotated

from cyclopts import Parameter

from microscope_tui.console import print_data
from microscope_tui.sources import FORMATS


def sources(*, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> int:
    """List the formats: the name for --source, what is read, what it can show, whether it is live.

    Parameters
    ----------
    as_json
        Print them as JSON.
    """
    rows = [
        {"source": form.name, "reads": form.reads, "shows": form.shows, "live": form.live}
        for form in FORMATS.values()
    ]
    if as_json:
        print_data(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    width = max(len(row["source"]) for row in rows)
    for row in rows:
        print_data(f"{row['source']:<{width}}  {row['reads']}")
        print_data(f"{'':<{width}}  shows {row['shows']}; live: {row['live']}")
    print_data("\nA run log needs none of these. --map adds keys: see docs/sources.md.")
    return 0
