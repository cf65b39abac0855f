"""Signed bundles: what the owner of the key wrote is accepted, and nothing else."""

import shutil
import subprocess
import sys

import msgspec
import pytest
from click.testing import CliRunner

from cli.main import main
from edgespec.errors import BundleError, UsageError
from edgespec.manifest import MANIFEST, Bundle
from edgespec.signing import SIGNATURE, make_signing_keys, read_secret, sign


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_signing_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def folder(tiny_bundle, tmp_path, keys):
    folder = shutil.copytree(tiny_bundle.folder, tmp_path / "bundle")
    sign(folder, read_secret(keys[1]))
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def sealed(folder, manifest):
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest.sealed()))


def test_a_signed_bundle_is_accepted(folder, keys):
    Bundle.open(folder, keys[0]).check()
    result = run("inspect", folder, "--verify-key", keys[0])
    assert result.exit_code == 0 and "signed by the owner of" in result.output


@pytest.mark.parametrize("command", ["inspect", "cloud-run", "edge-run"])
def test_another_manifest_with_a_valid_seal_is_refused(folder, keys, command):
    manifest = Bundle.open(folder).manifest
    sealed(folder, msgspec.structs.replace(manifest, made_by="somebody"))
    Bundle.open(folder).check()
    option = "--verify-key" if command == "inspect" else "--bundle-key"
    result = run(command, folder, option, keys[0])
    assert result.exit_code == 1
    assert "the manifest was changed, or another key signed it" in result.output
    assert result.output.count("\n") == 1


def test_a_changed_file_is_refused(folder, keys):
    path = folder / "tokenizer/tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    result = run("inspect", folder, "--verify-key", keys[0])
    assert result.exit_code == 1 and "tokenizer.json is damaged" in result.output


def test_another_key_and_no_signature_are_refused(folder, keys, tmp_path):
    other, _ = make_signing_keys(tmp_path, "other")
    with pytest.raises(BundleError, match="does not fit its manifest and"):
        Bundle.open(folder, other)
    (folder / SIGNATURE).write_bytes(b"short")
    with pytest.raises(BundleError, match="does not fit its manifest and"):
        Bundle.open(folder, keys[0])
    (folder / SIGNATURE).unlink()
    with pytest.raises(BundleError, match="has no signature"):
        Bundle.open(folder, keys[0])


def test_a_file_that_is_no_key_is_refused(folder, keys):
    with pytest.raises(UsageError, match=r"is no \.signing_key file"):
        Bundle.open(folder, keys[1])
    with pytest.raises(UsageError, match=r"is no \.signing_secret file"):
        read_secret(keys[0])


def test_export_signs_and_a_change_removes_the_signature(tmp_path, tiny_llama_folder):
    from export.install import install

    assert run("keygen", tmp_path, "--signing").exit_code == 0
    public, secret = tmp_path / "bundle.signing_key", tmp_path / "bundle.signing_secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert "holds a key already" in run("keygen", tmp_path, "--signing").output
    out = tmp_path / "b"
    result = run("export", tiny_llama_folder, "--out", out, "--sign", secret)
    assert result.exit_code == 0, result.output
    install(Bundle.open(out, public), None, {}, 0.5)
    with pytest.raises(BundleError, match="has no signature"):
        Bundle.open(out, public)


def test_a_wrong_key_is_refused_before_the_work(tmp_path, tiny_llama_folder, keys):
    result = run("export", tiny_llama_folder, "--out", tmp_path / "b", "--sign", keys[0])
    assert result.exit_code == 2 and not (tmp_path / "b").exists()


def test_without_the_library_the_extra_is_named(folder, keys):
    arguments = ["edge-run", str(folder), "--bundle-key", str(keys[0])]
    code = "import sys; sys.modules['cryptography'] = None\nfrom cli.main import main\n"
    code += f"main({arguments})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs cryptography, which edgespec's extra 'signing' brings" in done.stderr
