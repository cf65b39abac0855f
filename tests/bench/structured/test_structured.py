"""`edgespec bench structured`, and the schemas that it draws."""

import json
import random

import jsonschema
import pytest
from click.testing import CliRunner

from bench.structured.judging import fault
from bench.structured.schemas import random_schema
from cli.main import main
from tests.edge_runtime.conftest import bundle

__all__ = ["bundle"]


def test_schemas_are_valid_and_of_every_kind():
    chance, kinds = random.Random(0), set()

    def collect(schema):
        kinds.add(str(schema.get("type", "enum")))
        for inner in (*schema.get("properties", {}).values(), schema.get("items", {})):
            if inner:
                collect(inner)

    for _ in range(100):
        schema = random_schema(chance)
        jsonschema.Draft202012Validator.check_schema(schema)
        collect(schema)
    assert kinds >= {"object", "array", "string", "enum", "integer", "number", "boolean"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 0.07}', ""),
        ('{"a": 0.075}', "not a multiple"),
        ('{"a": "x"}', "not of type"),
        ('{"a": 1', "no JSON"),
        ("{}", "required"),
    ],
)
def test_the_judge_compares_decimals(text, found):
    number = {"type": "number", "multipleOf": 0.01}
    schema = {"type": "object", "properties": {"a": number}, "required": ["a"]}
    assert found in fault(text, schema) and bool(fault(text, schema)) == bool(found)


def test_answers_of_the_bench_are_valid_and_identical(bundle):
    command = [
        "bench",
        "structured",
        str(bundle.folder),
        "--schemas",
        "2",
        "--depth",
        "0",
        "--json",
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output.splitlines()[-1])
    assert figures["valid"] == figures["identical"] == figures["schemas"] == 2
    assert [mode["mode"] for mode in figures["modes"]] == ["cloud", "edge"]
    assert all(mode["ratio"] > 0 for mode in figures["modes"])
