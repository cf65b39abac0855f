"""`optimum-cli export edgespec` with the real optimum, in an environment of its own.

That environment sees the packages of the one that runs the tests, in which optimum would look
installed to transformers.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from edgespec.manifest import Bundle

ROOT = Path(__file__).parents[2]
OPTIMUM = "optimum>=2.3,<3"


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """The path of optimum-cli. Skips where optimum cannot be installed."""
    folder = tmp_path_factory.mktemp("optimum") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    python = folder / "bin/python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-compile",
    ]
    done = subprocess.run([*install, OPTIMUM], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"optimum cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    ours = [*install, "--no-build-isolation", ROOT / "integrations/optimum"]
    subprocess.run(ours, check=True, capture_output=True)
    entry = "import sys; from optimum.commands.optimum_cli import main; sys.argv[0] = 'optimum-cli'"
    return [python, "-c", f"{entry}; main()"]


def ran(cli, *words):
    return subprocess.run([*cli, *map(str, words)], capture_output=True, text=True)


def test_a_model_becomes_a_bundle(cli, tiny_llama_folder, tmp_path):
    out = tmp_path / "bundle"
    options = [
        "--segments",
        "2",
        "--draft",
        "self",
        "--profile",
        "cpu-fp32",
        "--profile",
        "cpu-int8",
    ]
    done = ran(cli, "export", "edgespec", "--model", tiny_llama_folder, *options, out)
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(out).manifest
    assert len(manifest.target.segments) == 2 and set(manifest.drafts) == {"cpu-fp32", "cpu-int8"}
    again = ran(cli, "export", "edgespec", "-m", tiny_llama_folder, out)
    assert again.returncode != 0 and "--force" in again.stderr
    assert "Traceback" not in again.stderr
    assert ran(cli, "export", "edgespec", "-m", tiny_llama_folder, "--force", out).returncode == 0


def test_it_is_listed_with_its_options(cli):
    assert "edgespec" in ran(cli, "export", "--help").stdout
    shown = ran(cli, "export", "edgespec", "--help").stdout
    for option in ("--model", "--precision", "--draft", "--profile", "--exit-heads", "--check"):
        assert option in shown


def test_the_wheel_of_edgespec_has_nothing_of_it():
    listed = (ROOT / "pyproject.toml").read_text().split("packages = [")[1].split("]")[0]
    assert "integrations" not in listed and "optimum" not in listed
    assert not list((ROOT / "integrations/optimum/optimum").rglob("__init__.py"))
