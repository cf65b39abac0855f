"""A grammar that an answer must follow, as it is asked for and as it crosses the wire.

The rule: tokens that the grammar rules out get minus infinity before every other step of
`edgespec.sampling`, so the constrained token is the arg-max over the legal tokens of the same
processed and noised logits. Where top-k, top-p and min-p are off, an unconstrained choice that is
legal is therefore the constrained choice too. Both sides follow the grammar with llguidance
(`edgespec.grammars`); importing this module does not import it.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

from edgespec.errors import UsageError

Kind = Literal["json_schema", "regex", "lark"]
MAX_GRAMMAR_BYTES = 48 << 10
"""Bytes of the text of a grammar, in UTF-8; with a header it fits a packet of the wire."""


class Grammar(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The text of a grammar. Whether it is valid is found out when it is compiled."""

    kind: Kind
    text: str
    """A JSON schema; a regular expression for the whole answer; or a grammar in llguidance's form
    of Lark, whose first rule is `start`."""

    def check(self) -> None:
        """Raises `UsageError` if the text is empty, too long, or not Unicode."""
        try:
            size = len(self.text.encode())
        except UnicodeEncodeError as error:
            raise UsageError(f"the {self.name} is not Unicode (character {error.start})") from error
        if not size:
            raise UsageError(f"the {self.name} is empty; leave it out, or write one")
        if size > MAX_GRAMMAR_BYTES:
            raise UsageError(
                f"the {self.name} has {size} bytes; it may have at most {MAX_GRAMMAR_BYTES}"
            )

    @property
    def name(self) -> str:
        """What users call this kind."""
        return {"json_schema": "JSON schema", "regex": "regular expression"}.get(
            self.kind, "grammar"
        )


def json_grammar(schema: Any) -> Grammar:
    """The grammar of a JSON schema: an object, `True` for any JSON, or the text of either.

    The text keeps the order of the properties, which is the order in which they are written.
    Raises `UsageError` for what is no JSON.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the JSON schema is not JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise UsageError("the JSON schema is neither an object nor true")
    try:
        text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is not JSON: {error}") from error
    return Grammar("json_schema", text)


def chosen_grammar(
    json_schema: Any = None, regex: str | None = None, grammar: str | None = None
) -> Grammar | None:
    """The grammar of at most one of three arguments; None without any. Raises `UsageError`.

    `grammar` is Lark, or GBNF as llama.cpp has it.
    """
    given = [json_schema is not None, regex is not None, grammar is not None]
    if sum(given) > 1:
        raise UsageError("an answer can follow one of a JSON schema, a regex and a grammar only")
    if json_schema is not None:
        return json_grammar(json_schema)
    if regex is not None:
        return Grammar("regex", _text(regex, "regular expression"))
    return None if grammar is None else Grammar("lark", _text(grammar, "grammar"))


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"the {name} is no text")
    return value
