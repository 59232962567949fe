"""The config file: limits of the rules that somebody wants otherwise, in ``[rules.NAME]`` tables.

```toml
[rules.COLLAPSE]
warn = 0.3
```

It is ``config.toml`` in the user's configuration folder (on Linux ``~/.config/moe-microscope``),
or what ``--config`` names. Everything that judges reads the same one, and ``check`` says what it
changed.
"""

import tomllib
from dataclasses import fields
from pathlib import Path

from platformdirs import user_config_path

from microscope_tui.console import USAGE, fail
from microscope_tui.diagnosis.criteria import Criteria
from microscope_tui.diagnosis.own_limits import BadLimit, changed_limits
from microscope_tui.diagnosis.thresholds import DEFAULTS, Limits
from microscope_tui.runlog.safe_text import safe_text


def default_config() -> Path:
    """Where the config file is looked for."""
    return user_config_path("moe-microscope", appauthor=False) / "config.toml"


def user_criteria() -> Criteria:
    """The criteria of somebody who named none: the limits of their config file."""
    return Criteria(limits=limits_of(None)[0])


def limits_of(config: Path | None) -> tuple[Limits, tuple[str, ...]]:
    """The limits by ``config``, or by the default file if there is one, and what it changed.

    A file that is named and missing, or that is malformed, is a usage error and ends here.
    """
    path = config or default_config()
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if config is None:
            return DEFAULTS, ()
        fail(f"--config {path}: no such file; name a TOML file with [rules.NAME] tables", USAGE)
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror}; mend or remove it", USAGE)
    except UnicodeDecodeError as error:
        fail(f"{path}: is no UTF-8 text (byte {error.start:,}); a config file is TOML", USAGE)
    try:
        limits = changed_limits(_rules(tomllib.loads(text)))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        fail(f"{path}: is no TOML: {error}; mend or remove it", USAGE)
    except BadLimit as error:
        fail(f"{path}: {error}", USAGE)
    changes = changes_in(limits)
    where = safe_text(path, 200)
    return limits, (f"limits changed by {where}: {', '.join(changes)}",) if changes else ()


def changes_in(limits: Limits) -> list[str]:
    """The limits that are not the default ones, in words."""
    changes = []
    for rule in fields(Limits):
        mine, default = getattr(limits, rule.name), getattr(DEFAULTS, rule.name)
        for name in (entry.name for entry in fields(mine)):
            if getattr(mine, name) != (before := getattr(default, name)):
                changes.append(f"{rule.name} {name} {getattr(mine, name):g} instead of {before:g}")
    return changes


def _rules(document: dict[str, object]) -> dict[str, dict[str, object]]:
    """The tables of rules; what else stands in the file is somebody else's."""
    rules = document.get("rules", {})
    if not isinstance(rules, dict):
        raise BadLimit("rules: is no table; write [rules.NAME] and the limits below it")
    for name, values in rules.items():
        if not isinstance(values, dict):
            raise BadLimit(f"rules.{name}: is no table; write [rules.{name}] and limits below it")
    return rules
