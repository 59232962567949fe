"""``moe-microscope keys``: the keys of every screen, as the config file names them."""

from microscope_tui.commands.config import default_config, keymap_from, read_config
from microscope_tui.commands.console import print_data, say


def keys() -> int:
    """List the keys of every screen: id, keys, what they do."""
    from microscope_tui.kit.keys import key_table

    own = keymap_from(read_config())  # invalid keys exit with a usage error
    screens = key_table(own)
    every = [row for rows in screens.values() for row in rows]
    ids, written = (max(len(row[at]) for row in every) for at in (0, 1))
    blocks = [
        [f"{screen} screen", *(f"  {row[0]:<{ids}}  {row[1]:<{written}}  {row[2]}" for row in rows)]
        for screen, rows in screens.items()
    ]
    print_data("\n\n".join("\n".join(lines) for lines in blocks))
    say(f'[keys] in {default_config()} changes them, for example layer.next = "n,down"')
    return 0
