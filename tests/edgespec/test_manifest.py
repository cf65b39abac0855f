"""A manifest with impossible content is refused in a sentence."""

import json
import shutil
import subprocess
import sys

import pytest

from edgespec.errors import BundleError
from edgespec.manifest import MANIFEST, Bundle


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    (tmp_path / "bundle").mkdir()
    shutil.copy(tiny_bundle.folder / MANIFEST, tmp_path / "bundle")
    return tmp_path / "bundle"


def change(folder, place, value):
    """Sets one number of the manifest; `place` is its path of keys, with dots."""
    document = json.loads((folder / MANIFEST).read_text())
    *above, last = place.split(".")
    part = document
    for key in above:
        part = part[int(key) if isinstance(part, list) else key]
    assert last in part
    part[last] = value
    (folder / MANIFEST).write_text(json.dumps(document))


IMPOSSIBLE = [
    ("context", 0),
    ("context", 10**15),
    ("text.vocabulary", -1),
    ("text.end_ids", [-1]),
    ("target.architecture.vocabulary", -5),
    ("target.architecture.layers", 5000),
    ("target.architecture.heads", 0),
    ("target.architecture.context", 1 << 40),
    ("target.opset", -1),
    ("target.segments.0.end", -1),
    ("drafts.cpu-int8.architecture.hidden", 1 << 70),
    ("drafts.cpu-int8.vocabulary", 0),
]


@pytest.mark.parametrize(("place", "value"), IMPOSSIBLE)
def test_an_impossible_number_is_refused(folder, place, value):
    change(folder, place, value)
    with pytest.raises(BundleError, match=rf"cannot be read \(Expected .*`\$\.{place[:5]}"):
        Bundle.open(folder)


@pytest.mark.parametrize("size", [-1, 1 << 63, pytest.param(10**400, id="huge")])
def test_an_impossible_size_of_a_file_is_refused(folder, size):
    document = json.loads((folder / MANIFEST).read_text())
    document["files"]["target/head.data"]["size"] = size
    (folder / MANIFEST).write_bytes(json.dumps(document).encode())
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(folder)


DEEP = '{"schema":3,"x":' + "[" * 100_000


def test_deeply_nested_json_is_refused(folder):
    (folder / MANIFEST).write_text(DEEP)
    with pytest.raises(BundleError, match=r"cannot be read \(maximum recursion"):
        Bundle.open(folder)


@pytest.mark.parametrize("command", [["inspect"], ["edge-run", "--prompt", "a"]])
@pytest.mark.parametrize(
    "content",
    [DEEP, ("context", 10**15), ("text.vocabulary", -5)],
    ids=["deep", "context", "vocabulary"],
)
def test_commands_say_so_in_one_sentence(folder, command, content):
    if isinstance(content, str):
        (folder / MANIFEST).write_text(content)
    else:
        change(folder, *content)
    name, *options = command
    done = subprocess.run(
        [sys.executable, "-m", "edgespec", name, str(folder), *options],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "cannot be read" in done.stderr
