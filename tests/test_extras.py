"""The extras that documents and error messages name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import EXTRAS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def extras():
    """By name, what each brings; by lines, as Python 3.10 reads no TOML."""
    text = (ROOT / "pyproject.toml").read_text()
    table = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    found = re.findall(r"^([\w-]+) = \[(.*?)\]$", table, re.MULTILINE | re.DOTALL)
    return {name: re.findall(r'"([^"]+)"', listed) for name, listed in found}


def brought(name):
    """With what the extras that it names bring."""
    for package in extras()[name]:
        inner = re.fullmatch(r"edgespec\[(.+)\]", package)
        if inner is None:
            yield re.split(r"[><=;]", package)[0].strip().replace("-", "_")
            continue
        for other in inner[1].split(","):
            yield from brought(other)


def named(text):
    """Those of `.[a,b]`, `./edgespec[a]` and `edgespec[a]`, quoted."""
    groups = re.findall(r"['\"`](?:\.|\./edgespec|edgespec)\[([\w,-]+)\]['\"`]", text)
    return {name for group in groups for name in group.split(",")}


def test_names_are_found():
    assert named("pip install './edgespec[jetson]' '.[dev,cuda]'") == {"jetson", "dev", "cuda"}
    assert {"export", "dev", "torch"} <= set(extras())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_extra_that_a_page_names_is_there(page):
    assert named(page.read_text()) <= set(extras())


@pytest.mark.parametrize("module", EXTRAS)
def test_what_an_error_message_names_brings_the_module(module):
    assert module in set(brought(EXTRAS[module]))


@pytest.mark.parametrize(("module", "extra"), [("torch", "torch"), ("onnx_ir", "export")])
def test_a_cloud_without_it_says_which_extra_to_install(tiny_bundle, module, extra):
    code = f"""
import sys
sys.modules[{module!r}] = None
from cli.main import main
main(["cloud-run", {str(tiny_bundle.folder)!r}, "--backend", "torch"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"edgespec's extra {extra!r} brings; in a checkout: pip install -e '.[{extra}]'" in (
        done.stderr
    )
