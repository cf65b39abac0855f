"""`edgespec verify` against a cloud in another process."""

import json
import shutil

import pytest
from click.testing import CliRunner

from cli.main import main
from edge_runtime import verify
from engines.alone import write_alone
from tests.system.test_commands import cloud


@pytest.fixture(scope="module")
def served(tiny_bundle):
    with cloud(tiny_bundle, "--draft", "cpu-fp32", "--any-client") as process:
        yield process


def run(bundle, served, *options):
    arguments = ["verify", str(bundle.folder), "--connect", served.endpoint, "-n", "12"]
    return CliRunner().invoke(main, [*arguments, *options])


@pytest.mark.parametrize("options", [[], ["--local"]], ids=["cloud", "local"])
def test_every_mode_gives_the_targets_own_answers(tiny_bundle, served, options):
    done = run(tiny_bundle, served, "--json", *options)
    assert done.exit_code == 0, done.output
    proof = json.loads(done.stdout)
    modes = ["cloud"] * bool(options) + ["edge", "lockstep", "cloud-draft", "auto"]
    assert list(dict.fromkeys(check["mode"] for check in proof["checks"])) == modes
    assert len(proof["checks"]) == len(modes) * len(verify.PROMPTS) * 2
    assert proof["identical"]
    assert all(check["identical"] for check in proof["checks"])
    drafted = {check["mode"]: 0 for check in proof["checks"]}
    for check in proof["checks"]:
        drafted[check["mode"]] += check["drafted"]
    assert drafted["lockstep"] and not drafted.get("cloud")
    assert proof["cloud_arithmetic"].startswith("onnxruntime ")
    assert proof["local_arithmetic"] == (proof["cloud_arithmetic"] if options else "")


def test_a_difference_is_explained_and_ends_with_exit_code_1(tiny_bundle, served, monkeypatch):
    def other(*about):
        tokens = write_alone(*about)
        return [*tokens[:3], (tokens[3] + 1) % 300, *tokens[4:]]

    monkeypatch.setattr(verify, "write_alone", other)
    done = run(tiny_bundle, served, "--local")
    assert done.exit_code == 1
    assert "edge, prompt 1, greedy: token 4 is" in done.output
    assert "logits apart" in done.output
    assert "40 of 40 answers differ from the target's own on this machine" in done.output
    (bad,) = json.loads(run(tiny_bundle, served, "--local", "--json").stdout)["checks"][:1]
    assert (bad["identical"], bad["difference"]["position"]) == (False, 3)
    assert isinstance(bad["difference"]["gap_logits"], float)


def test_keys_of_both_sides(tiny_bundle, tmp_path):
    keys, clients = tmp_path / "keys", tmp_path / "clients"
    clients.mkdir()
    for arguments in ([], ["--device", "robot-7"]):
        assert CliRunner().invoke(main, ["keygen", str(keys), *arguments]).exit_code == 0
    shutil.copy(keys / "robot-7.key", clients)
    secret = str(keys / "cloud.key_secret")
    options = ["--server-key", str(keys / "cloud.key"), "--key", str(keys / "robot-7.key_secret")]
    with cloud(tiny_bundle, "--key", secret, "--clients", str(clients)) as process:
        done = run(tiny_bundle, process, *options, "--json")
        assert done.exit_code == 0 and json.loads(done.stdout)["identical"], done.output
        refused = run(tiny_bundle, process, *options[:2])
    assert refused.exit_code == 1 and "refused this device's key" in refused.output


def test_without_the_target_here_local_is_refused(tiny_bundle, served, tmp_path):
    device = tmp_path / "device"
    shutil.copytree(tiny_bundle.folder, device, ignore=shutil.ignore_patterns("target"))
    done = CliRunner().invoke(
        main, ["verify", str(device), "--connect", served.endpoint, "--local"]
    )
    assert done.exit_code == 2
    assert "has no target files" in done.output
