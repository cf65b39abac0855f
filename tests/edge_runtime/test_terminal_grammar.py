"""`edge-run --json-schema`, `--regex` and `--grammar`, as they are typed."""

import json

import jsonschema
import pytest
from click.testing import CliRunner

from cli.main import main

SCHEMA = {"type": "array", "items": {"enum": ["fox", "dog", 3]}, "minItems": 1, "maxItems": 4}


@pytest.fixture
def answer(bundle, endpoint):
    def run(*options):
        command = ["edge-run", str(bundle.folder), "-c", endpoint, "-p", "the quick"]
        return CliRunner().invoke(main, [*command, "-q", "-n", "90", *options])

    return run


def test_answers_follow_a_file_or_an_expression(answer, tmp_path):
    file = tmp_path / "file"
    file.write_text(json.dumps(SCHEMA))
    done = answer("--json-schema", str(file))
    assert done.exit_code == 0, done.output
    jsonschema.validate(json.loads(done.stdout), SCHEMA)
    assert answer("--regex", "fox{3}").stdout.strip() == "foxxx"
    file.write_text('start: "the " /[a-c]{4}/\n')
    assert answer("--grammar", str(file)).stdout.startswith("the ")


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--regex", "("], 1, "cannot be used"),
        (["--regex", "a", "--json-schema", "FILE"], 2, "one of a JSON schema"),
        (["--json-schema", "FILE"], 2, "not JSON"),
        (["--grammar", "nowhere"], 2, "cannot be read"),
        (["--regex", ""], 2, "is empty"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(answer, tmp_path, options, code, sentence):
    (tmp_path / "file").write_text("{")
    done = answer(*[str(tmp_path / "file") if each == "FILE" else each for each in options])
    assert done.exit_code == code and sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_session_file_keeps_the_grammar(answer, tmp_path):
    kept = ["--session", str(tmp_path / "session")]
    first = answer("--regex", "fox{3}", *kept)
    assert first.stdout.strip() == "foxxx"
    assert answer("--regex", "fox{3}", *kept).stdout == first.stdout
    other = answer("--regex", "fox{4}", *kept)
    assert other.exit_code == 2 and "its grammar differs" in other.stderr
