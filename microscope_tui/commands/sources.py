"""``moe-microscope sources``: the files of other tools that can be read."""

from microscope_tui.commands.console import print_data, print_json
from microscope_tui.commands.options import AsJson
from microscope_tui.sources import FORMATS


def sources(*, as_json: AsJson = False) -> int:
    """List the formats: the name for --source, what is read and shown, whether it is live."""
    rows = [
        {"source": form.name, "reads": form.reads, "shows": form.shows, "live": form.live}
        for form in FORMATS.values()
    ]
    if as_json:
        print_json(rows)
        return 0
    width = max(len(row["source"]) for row in rows)
    for row in rows:
        print_data(f"{row['source']:<{width}}  {row['reads']}")
        print_data(f"{'':<{width}}  shows {row['shows']}; live: {row['live']}")
    print_data("\nA run log needs none of these. --map adds keys: see docs/sources.md.")
    return 0
