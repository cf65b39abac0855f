"""The last line of a bench with `--json`: everything that it measured, as one JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from edgespec.energy_report import Energy
from engines.machine.doctor import Machine


def print_json(figures: object) -> None:
    """Print `figures` on one line of standard output."""
    print(msgspec.json.encode(jsonable(figures)).decode(), flush=True)


def jsonable(value: object) -> Any:
    """Structs, dataclasses and named tuples as dicts, recursively; fields that are UNSET are left
    out. Energy and machines come with their derived figures."""
    if isinstance(value, Energy):
        return value.figures()
    if isinstance(value, Machine):
        return jsonable(value.as_dict())
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(each) for key, each in value.items()}
    fields = _fields(value)
    if fields is not None:
        return {name: jsonable(each) for name, each in fields.items() if each is not msgspec.UNSET}
    if isinstance(value, (list, tuple)):
        return [jsonable(each) for each in value]
    return msgspec.to_builtins(value)


def _fields(value: Any) -> dict[str, Any] | None:
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if dataclasses.is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    return None
