"""Structured output: the fields by which OpenAI, vLLM and llama-server ask for a grammar.

    OpenAI        response_format: text, json_object, json_schema
    vLLM          structured_outputs: json, json_object, regex, choice, grammar; before 0.12
                  guided_json, guided_regex, guided_choice, guided_grammar
    llama-server  json_schema, grammar; response_format may have `schema` beside its `type`

Grammars are llguidance's form of Lark, or GBNF. The answer follows a schema whether or not `strict`
is set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from edge_runtime.api.errors import ApiError
from edgespec.errors import UsageError
from edgespec.grammar import Grammar, chosen_grammar

_ANY_OBJECT = {"type": "object"}
_KINDS = ("json", "json_object", "regex", "choice", "grammar")
_NEUTRAL: tuple[object, ...] = (None, False, "", [])
"""Values of vLLM's further options that ask for nothing."""


class Structured(msgspec.Struct, kw_only=True):
    """The fields of a request. At most one of them may ask for something."""

    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    json_schema: Any = None
    grammar: Any = None

    @property
    def constraint(self) -> Grammar | None:
        """The grammar that the answer must follow; None: any text. Raises `ApiError`."""
        read = {
            "response_format": _of_response_format(self.response_format),
            "structured_outputs": _of_structured_outputs(self.structured_outputs),
            "guided_json": {"json_schema": self.guided_json},
            "guided_regex": {"regex": self.guided_regex},
            "guided_choice": _of_choice(self.guided_choice, "guided_choice"),
            "guided_grammar": {"grammar": self.guided_grammar},
            "json_schema": {"json_schema": self.json_schema},
            "grammar": {"grammar": self.grammar or None},
        }
        asked = {
            name: how
            for name, how in read.items()
            if any(value is not None for value in how.values())
        }
        if len(asked) > 1:
            raise _invalid(f"{' and '.join(asked)} cannot be combined", next(iter(asked)))
        for name, how in asked.items():
            try:
                grammar = chosen_grammar(**how)
                assert grammar is not None
                grammar.check()
            except UsageError as error:
                raise _invalid(str(error), name) from error
            return grammar
        return None


def _of_response_format(value: Any) -> Mapping[str, Any]:
    """The arguments of `chosen_grammar`."""
    if value is None:
        return {}
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": value.get("schema") or _ANY_OBJECT}
    if kind == "json_schema":
        named = value.get("json_schema", value)
        schema = named.get("schema") if isinstance(named, dict) else None
        if schema is None:
            raise _invalid("response_format has no json_schema.schema", "response_format")
        return {"json_schema": schema}
    raise _invalid(
        "response_format needs a type: text, json_object or json_schema", "response_format"
    )


def _of_structured_outputs(value: Any) -> Mapping[str, Any]:
    name = "structured_outputs"
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid(f"{name} is no object", name)
    for option, given in value.items():
        if option not in _KINDS and given not in _NEUTRAL:
            raise _invalid(f"{name}.{option} is not supported; leave it out", name)
    asked = [kind for kind in _KINDS if value.get(kind) not in (None, False)]
    if len(asked) != 1:
        raise _invalid(f"{name} must have one of {', '.join(_KINDS)}", name)
    (kind,) = asked
    if kind == "json_object":
        return {"json_schema": _ANY_OBJECT}
    if kind == "choice":
        return _of_choice(value[kind], name)
    return {"json_schema" if kind == "json" else kind: value[kind]}


def _of_choice(value: Any, name: str) -> Mapping[str, Any]:
    """One of several texts."""
    if value is None:
        return {}
    if not (isinstance(value, list) and value and all(isinstance(each, str) for each in value)):
        raise _invalid(f"{name} needs a list of texts to choose from", name)
    texts = (json.dumps(each, ensure_ascii=False) for each in value)
    return {"grammar": f"start: {' | '.join(texts)}\n"}


def _invalid(sentence: str, name: str) -> ApiError:
    return ApiError(400, sentence, param=name)
