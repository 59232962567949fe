"""The config file: the tables ``[rules.NAME]``, ``[keys]``, ``[view]`` and ``[import.map]``.

``check`` reports what it changed. Unknown names are errors: a typo must not be ignored.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import replace
from platformdirs import user_config_path

from microscope_tui.commands.console import USAGE, fail, say
from microscope_tui.diagnosis import DEFAULTS, RULES, BadLimit, Criteria, Limits, changed_limits
from microscope_tui.draw.heat import Palette
from microscope_tui.runlog import safe_text
from microscope_tui.sources import BadMapping, rules_of
from microscope_tui.sources.keys import Rule

Color = Literal["auto", "truecolor", "256", "16", "never"]
GlyphChoice = Literal["auto", "braille", "block", "ascii"]
Theme = Literal["dark", "light"]
_TABLES = {
    "rules": "[rules.NAME] and its limits",
    "keys": "[keys] and your keys",
    "view": "[view] and your settings",
    "import": "[import.map] and your patterns",
}
_CHOICES = {
    "palette": tuple(Palette),
    "glyphs": get_args(GlyphChoice),
    "color": get_args(Color),
    "theme": get_args(Theme),
}


class _BadConfig(ValueError):
    """The message says where and what to write."""


class ViewConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[view]`` of the config file."""

    palette: Palette = Palette.DIVERGING
    glyphs: GlyphChoice = "auto"
    color: Color = "auto"
    theme: Theme = "dark"
    bell: bool = False
    """At a critical alert."""
    remember: bool = True
    """Save the view of each folder."""


class UserConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The config file, checked; its defaults where there is none."""

    path: Path
    limits: Limits = DEFAULTS
    changes: tuple[str, ...] = ()
    """In words, to report with a verdict."""
    keys: Mapping[str, object] = msgspec.field(default_factory=dict)
    """``[keys]``, unchecked; see ``keymap_from``."""
    view: ViewConfig = ViewConfig()
    rules: tuple[Rule, ...] = ()
    """``[import.map]``."""

    @property
    def criteria(self) -> Criteria:
        return Criteria(limits=self.limits)

    def with_options(self, **given: object) -> "UserConfig":
        """With view settings of the command line, which win; empty ones do not count."""
        view: dict[str, Any] = {name: value for name, value in given.items() if value}
        return replace(self, view=replace(self.view, **view))


def default_config() -> Path:
    """Where the user's config file is looked for, whether it exists or not."""
    return user_config_path("moe-microscope", appauthor=False) / "config.toml"


def read_config(config: Path | None = None) -> UserConfig:
    """``config``, or the default file if it exists; an invalid file is a usage error."""
    path = config or default_config()
    try:
        return _config_of(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        if config is None:
            return UserConfig(path=path)
        fail(f"--config {path}: no such file; name a TOML file with [rules.NAME] tables", USAGE)
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror}; fix or remove it", USAGE)
    except UnicodeDecodeError as error:
        fail(f"{path}: not UTF-8 text (byte {error.start:,}); a config file is TOML", USAGE)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        fail(f"{path}: not valid TOML: {error}; fix or remove it", USAGE)
    except (BadLimit, _BadConfig) as error:
        fail(f"{path}: {error}", USAGE)


def keymap_from(config: UserConfig) -> Mapping[str, str]:
    """The ``[keys]`` table, checked; invalid keys are a usage error.

    It imports Textual, which reads the environment: call it when the UI opens.
    """
    if not config.keys:
        return {}
    from microscope_tui.kit.keymap import BadKey, keymap_of, without_screen
    from microscope_tui.kit.keys import all_bindings

    for name in without_screen(config.keys):
        say(f"{config.path}: [keys] {safe_text(name, 40)}: its screen is not installed")
    try:
        return keymap_of(config.keys, all_bindings())
    except BadKey as error:
        fail(f"{config.path}: {error}", USAGE)


def _changes_in(limits: Limits) -> list[str]:
    changes = []
    for rule in RULES.values():
        mine = limits.of(rule.limits_type).values()
        for name, before in rule.limits_type().values().items():
            if mine[name] != before:
                changes.append(f"{rule.name} {name} {mine[name]:g} instead of {before:g}")
    return changes


def _config_of(path: Path, document: Mapping[str, object]) -> UserConfig:
    for name in document:
        if name not in _TABLES:
            there = "there are [rules.NAME], [keys], [view], [import.map]"
            if name.upper() in RULES:
                there = f"write [rules.{name.upper()}]; {there}"
            there = f"no such table; {there}"
            raise _BadConfig(f"{safe_text(name, 40)}: {there}")
    tables = {name: _table(document.get(name, {}), name, below) for name, below in _TABLES.items()}
    rules = {}
    for name, limits in tables["rules"].items():
        shown = safe_text(name, 40)
        rules[name] = _table(limits, f"rules.{shown}", f"[rules.{shown}] and limits")
    changed = changed_limits(rules)
    changes: tuple[str, ...] = ()
    if different := _changes_in(changed):
        changes = (f"limits changed by {safe_text(path, 200)}: {', '.join(different)}",)
    return UserConfig(
        path=path,
        limits=changed,
        changes=changes,
        keys=tables["keys"],
        view=_view(tables["view"]),
        rules=_key_rules(tables["import"]),
    )


def _table(table: object, name: str, below: str) -> dict[str, object]:
    if not isinstance(table, dict):
        raise _BadConfig(f"{name}: is not a table; write {below} below it")
    return table


def _key_rules(table: Mapping[str, object]) -> tuple[Rule, ...]:
    """``[import.map]``: a quantity, and one pattern or a list of them."""
    for name in table:
        if name != "map":
            raise _BadConfig(f"[import] {safe_text(name, 40)}: no such key; there is [import.map]")
    pairs = []
    for quantity, patterns in _table(table.get("map", {}), "map", _TABLES["import"]).items():
        if not isinstance(patterns, list):
            patterns = [patterns]
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise _BadConfig(f"[import.map] {safe_text(quantity, 40)}: write a pattern as text")
            pairs.append(f"{quantity}={pattern}")
    try:
        return rules_of(pairs)
    except BadMapping as error:
        raise _BadConfig(f"[import.map] {safe_text(error, 300)}") from error


def _view(table: Mapping[str, object]) -> ViewConfig:
    known = ViewConfig.__struct_fields__
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            there = f"no such key; there are {', '.join(known)}"
            raise _BadConfig(f"[view] {safe_text(name, 40)}: {there}")
        values[name] = value
        choices = _CHOICES.get(name)
        if choices is None:
            if not isinstance(value, bool):
                raise _BadConfig(f"[view] {name} is {_shown(value)}: write true or false")
            continue
        if type(value) is int:
            values[name] = str(value)  # color = 256 without quotes means the same
        if values[name] not in choices:
            there = f"choose one of {', '.join(choices)}"
            raise _BadConfig(f"[view] {name} is {_shown(value)}: {there}")
    if "palette" in values:
        values["palette"] = Palette(values["palette"])
    return ViewConfig(**values)


def _shown(value: object) -> str:
    return safe_text(repr(value), 40)
