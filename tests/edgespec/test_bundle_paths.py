"""Manifests with a valid seal that name files outside the bundle are refused."""

import json
import re
import shutil

import msgspec
import pytest

from edgespec.errors import BundleError
from edgespec.manifest import MANIFEST, Bundle, Manifest
from edgespec.text import CHAT_TEMPLATE, Codec


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle.folder, tmp_path / "bundle")


def rewrite(folder, change):
    """Changes the manifest's JSON and seals it again, as an attacker would."""
    document = json.loads((folder / MANIFEST).read_text())
    change(document)
    manifest = msgspec.convert(document, Manifest).sealed()
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))


PATHS = [
    "../outside.onnx",
    "/etc/passwd",
    "target/../../x",
    "target//x",
    "./x",
    ".",
    "a\\b",
    "a\nb",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_leads_out_is_refused(folder, path):
    rewrite(folder, lambda m: m["files"].update({path: {"sha256": "0", "size": 1}}))
    with pytest.raises(BundleError, match=re.escape(f"names {path!r}, which is no path inside")):
        Bundle.open(folder)


@pytest.mark.parametrize("circle", [True, False])
def test_a_link_that_leads_out_is_refused(folder, circle):
    head = folder / "target/head.onnx"
    outside = head.rename(folder.parent / "head.onnx")
    head.symlink_to(head if circle else outside)
    with pytest.raises(BundleError, match=r"head\.onnx leads out of the bundle"):
        Bundle.open(folder)


def test_a_link_inside_the_bundle_and_a_link_to_it_are_fine(folder):
    head = folder / "target/head.onnx"
    head.rename(folder / "target/other.onnx")
    head.symlink_to("other.onnx")
    (folder.parent / "link").symlink_to(folder)
    Bundle.open(folder.parent / "link").check()


@pytest.mark.parametrize("path", ["target/other.onnx", "../x.onnx", "draft/cpu-int8/model.onnx"])
def test_a_graph_without_a_checksum_in_its_folder_is_refused(folder, path):
    (folder / "target/other.onnx").write_bytes((folder / "target/head.onnx").read_bytes())
    rewrite(folder, lambda m: m["target"].update(head=path))
    with pytest.raises(BundleError, match=re.escape(f"{path!r}, which has no checksum in target/")):
        Bundle.open(folder)


def test_a_chat_template_without_a_checksum_is_not_read(folder):
    (folder / CHAT_TEMPLATE).write_text("{{ evil }}")
    assert Codec(Bundle.open(folder))._template is None
