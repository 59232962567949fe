"""All rules: the classes of the files in ``rules/``, in the order of their rows in ``Limits``.

Rules evaluate a step in this order: first the rule that mutes all others, then every rule after
those that mute it.
"""

from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules

from microscope_tui.diagnosis import rules
from microscope_tui.diagnosis.rules.base import Rule
from microscope_tui.diagnosis.thresholds import Limits


def rules_in_files() -> dict[str, type[Rule]]:
    """Every rule by its name, in the order of the files."""
    for file in iter_modules(rules.__path__, f"{rules.__name__}."):
        import_module(file.name)
    return {rule.name: rule for rule in Rule.__subclasses__()}


_FOUND = rules_in_files()
RULES: dict[str, type[Rule]] = {row.name: _FOUND[row.name] for row in fields(Limits)}
