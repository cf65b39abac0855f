"""The judge of answers: the package jsonschema, which knows nothing of grammars."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from edgespec.errors import EdgespecError


def fault(text: str, schema: dict[str, Any]) -> str:
    """Why a text is no JSON of a schema; empty: it is.

    Numbers are decimal: as binary fractions 0.07 is no multiple of 0.01. Raises `EdgespecError`
    without the package.
    """
    try:
        import jsonschema
    except ImportError as error:
        raise EdgespecError(
            "answers are judged with the package jsonschema: pip install jsonschema"
        ) from error
    try:
        value = json.loads(text, parse_float=Decimal)
        jsonschema.validate(value, json.loads(json.dumps(schema), parse_float=Decimal))
    except ValueError as error:
        return f"no JSON: {error}"
    except jsonschema.ValidationError as error:
        return str(error.message)
    return ""
