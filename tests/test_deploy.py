"""The files in deploy/ are what their tools take without a complaint, and know their options."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main

DEPLOY = Path(__file__).parents[1] / "deploy"
HADOLINT = Path(sys.executable).parent / "hadolint"


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*.Containerfile")), ids=lambda f: f.name)
@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is there for x86-64")
def test_container_files(file):
    done = subprocess.run([HADOLINT, file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_unit(tmp_path):
    """With a program that is there in place of the installed one."""
    text = (DEPLOY / "edgespec-cloud.service").read_text()
    unit = tmp_path / "edgespec-cloud.service"
    unit.write_text(text.replace("/opt/edgespec/bin/edgespec", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("file", sorted(DEPLOY.iterdir()), ids=lambda f: f.name)
def test_options_exist(file):
    known = {
        option
        for command in ("cloud-run", "edge-run", "export", "keygen")
        for parameter in main.get_command(None, command).params
        for option in parameter.opts
    }
    text = file.read_text()
    text = re.sub(r"^#.*(podman|pip) .*$", "", text, flags=re.M)
    text = re.sub(r"^(FROM|COPY|RUN|HEALTHCHECK) .*$", "", text, flags=re.M)
    used = set(re.findall(r"--[a-z][a-z-]+", text))
    assert used
    assert used <= known
