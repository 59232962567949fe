"""Every field of the model as an optional flag ``--model.FIELD``, derived from ``ModelConfig``.

Names, types and help come from the dataclass, so a new field of the model is a flag at once.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from typing import Annotated, Any

from cyclopts import Parameter

from moe_model import ModelConfig
from moe_model.config import YarnScaling


def _field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, by field name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    docs = {}
    for field, doc in zip(body.body, body.body[1:], strict=False):  # type: ignore[attr-defined]
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
            docs[field.target.id] = inspect.cleandoc(doc.value.value)  # type: ignore[union-attr, attr-defined]
    return docs


def _override(name: str, kind: Any, doc: str) -> tuple[str, Any, Any]:
    help_text = " ".join(doc.split())
    return name, Annotated[kind | None, Parameter(help=help_text, show_default=False)], None


def _all_optional(cls: type, name: str, **nested: Any) -> Any:
    """A dataclass with the fields of ``cls``, all optional, each with its docstring."""
    kinds = {**typing.get_type_hints(cls), **nested}
    return dataclasses.make_dataclass(
        name,
        [_override(field, kinds[field], doc) for field, doc in _field_docs(cls).items()],
        namespace={"__module__": __name__},  # else it counts as built in, and has no fields
        frozen=True,
        kw_only=True,
    )


YarnOverrides: Any = _all_optional(YarnScaling, "YarnOverrides")
ModelOverrides: Any = _all_optional(ModelConfig, "ModelOverrides", rope_scaling=YarnOverrides)
"""The fields of ``ModelConfig``, all optional, as ``--model.FIELD`` sets them."""
