import json
from dataclasses import replace

import msgspec
import pytest
from click.testing import CliRunner

from calibration.exit_heads.command import CalibrateSettings, check_same, run
from calibration.exit_heads.report import show
from calibration.exit_heads.training import ExitTrainer
from cli.main import main
from edgespec.errors import EdgespecError, UsageError
from edgespec.manifest import Bundle
from engines.machine.profiles import precisions
from export.bundle import ExportSettings, export
from export.sources.open import open_checkpoint

TOKENS = 1500


@pytest.fixture(scope="session")
def corpus(tiny_llama_folder, tmp_path_factory):
    """What `tiny_llama_folder` writes; do not change it."""
    import torch

    from calibration.decoder import load
    from calibration.target import prepare

    checkpoint = open_checkpoint(str(tiny_llama_folder))
    folder = tmp_path_factory.mktemp("corpus")
    prepare(checkpoint, load(checkpoint).eval(), folder, None, TOKENS, 0, torch.device("cpu"))
    return folder


@pytest.fixture
def settings(corpus, tmp_path, tiny_llama_folder):
    return CalibrateSettings(
        str(tiny_llama_folder), corpus=corpus, tokens=TOKENS, out=tmp_path / "out", device="cpu"
    )


def test_a_bundle_in_segments_with_drafts(tiny_bundle, tiny_llama_folder, settings, capsys):
    found = run(open_checkpoint(str(tiny_llama_folder)), tiny_bundle, settings)
    report = found.report
    assert [leaving.layer for leaving in report.exits] == [1, 2]
    assert report.drafts.keys() == tiny_bundle.manifest.drafts.keys()
    # The draft is the target itself; the corpus was written in bfloat16.
    assert report.drafts["cpu-fp32"].agreement > 0.9
    assert report.agreement is None
    assert report.draft_length == 4
    assert report.exits[0].remaining > report.exits[1].remaining
    assert {path.name for path in settings.out.iterdir()} == {
        "exit-heads.safetensors",
        "calibration.json",
        "agreement-by-layer.png",
        "reliability.png",
    }
    written = json.loads((settings.out / "calibration.json").read_text())
    assert written == json.loads(msgspec.json.encode(report))
    show(report)
    assert "edgespec export" in capsys.readouterr().out


def test_one_segment_without_a_draft_and_without_matplotlib(
    tiny_llama_folder, settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "calibration.exit_heads.command.importlib.util.find_spec", lambda name: None
    )
    bundle = export(
        ExportSettings(
            target=str(tiny_llama_folder), out=tmp_path / "int8", precisions=precisions("int8")
        )
    )
    found = run(open_checkpoint(str(tiny_llama_folder)), bundle, settings)
    assert found.pictures == []
    assert found.report.draft_length == 0
    assert 0.5 < found.report.agreement < 1.0
    words = found.report.command.split()
    assert words[:3] == ["edgespec", "export", str(tiny_llama_folder)]
    assert words[words.index("--precision") + 1] == "int8"
    assert (settings.out / "exit-heads.safetensors").is_file()


def test_a_killed_run_is_taken_up_and_refuses_other_settings(
    tiny_bundle, tiny_llama_folder, settings, monkeypatch
):
    checkpoint = open_checkpoint(str(tiny_llama_folder))

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("calibration.exit_heads.command.of_exits", killed)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, tiny_bundle, settings)
    with pytest.raises(UsageError, match="was begun with seed 0 and now seed is 5"):
        run(checkpoint, tiny_bundle, replace(settings, seed=5))
    trained = []
    monkeypatch.setattr(ExitTrainer, "_train", lambda *args: trained.append(args))
    run(checkpoint, tiny_bundle, settings)
    assert trained == []


def test_a_bundle_of_another_target_is_refused(tiny_bundle, tiny_llama_folder):
    checkpoint = open_checkpoint(str(tiny_llama_folder))
    check_same(checkpoint, tiny_bundle)
    manifest = tiny_bundle.manifest

    def refused(match, **changes):
        target = msgspec.structs.replace(manifest.target, **changes)
        other = Bundle(tiny_bundle.folder, msgspec.structs.replace(manifest, target=target))
        with pytest.raises(UsageError, match=match):
            check_same(checkpoint, other)

    shapes = manifest.target.architecture
    refused("layers 9 and this one 3", architecture=msgspec.structs.replace(shapes, layers=9))
    refused("hidden 32 and this one 64", architecture=msgspec.structs.replace(shapes, hidden=32))
    refused("name x and this one", origin=msgspec.structs.replace(manifest.target.origin, name="x"))
    text = msgspec.structs.replace(manifest.text, fingerprint="0" * 64)
    other = Bundle(tiny_bundle.folder, msgspec.structs.replace(manifest, text=text))
    with pytest.raises(UsageError, match="tokenizer 000000000000 and this one"):
        check_same(checkpoint, other)


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    tiny_bundle, tiny_llama_folder, settings, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("calibration.exit_heads.command.load", None)  # reached only by the work
    with pytest.raises(EdgespecError, match="cannot write to"):
        run(
            open_checkpoint(str(tiny_llama_folder)),
            tiny_bundle,
            replace(settings, out=tmp_path / "file" / "out"),
        )


def test_the_command_installs_what_it_found(tiny_llama_folder, corpus, tmp_path):
    bundle = tmp_path / "bundle"
    export(
        ExportSettings(
            target=str(tiny_llama_folder), out=bundle, segments=3, drafts=(("cpu-fp32", "self"),)
        )
    )
    arguments = [str(tiny_llama_folder), "--bundle", str(bundle), "--corpus", str(corpus)]
    done = CliRunner().invoke(main, ["calibrate", *arguments, "--tokens", str(TOKENS)])
    assert done.exit_code == 0, done.output
    manifest = Bundle.open(bundle).manifest
    assert manifest.drafts["cpu-fp32"].calibration.agreement > 0.9
    assert [segment.calibration is None for segment in manifest.target.segments] == [
        False, False, True,
    ]  # fmt: skip
    assert (tmp_path / "bundle-calibration" / "calibration.json").is_file()


def test_drafts_are_calibrated_without_exit_heads(tiny_llama_folder, corpus, tmp_path):
    bundle = tmp_path / "bundle"
    drafts = (("cpu-fp32", "self"), ("cpu-int4", "self"))
    export(ExportSettings(target=str(tiny_llama_folder), out=bundle, segments=2, drafts=drafts))
    arguments = [str(tiny_llama_folder), "--bundle", str(bundle), "--corpus", str(corpus)]
    options = ["--tokens", str(TOKENS), "--drafts-only"]
    done = CliRunner().invoke(main, ["calibrate", *arguments, *options])
    assert done.exit_code == 0, done.output
    opened = Bundle.open(bundle)
    opened.check()
    found = {name: draft.calibration for name, draft in opened.manifest.drafts.items()}
    assert found["cpu-fp32"].agreement > 0.9 and found["cpu-int4"].agreement > 0
    assert not any(segment.calibration for segment in opened.manifest.target.segments)
    assert "cpu-int4" in done.output and not (tmp_path / "bundle-calibration").exists()


def test_drafts_of_a_bundle_without_any_cannot_be_calibrated(tiny_llama_folder, corpus, tmp_path):
    bundle = tmp_path / "bundle"
    export(ExportSettings(target=str(tiny_llama_folder), out=bundle))
    arguments = [str(tiny_llama_folder), "--bundle", str(bundle), "--corpus", str(corpus)]
    done = CliRunner().invoke(main, ["calibrate", *arguments, "--drafts-only"])
    assert done.exit_code == 2 and "has no draft to calibrate" in done.stderr


def test_bad_input_is_one_sentence(tiny_bundle, tmp_path):
    for code, bundle in ((2, tiny_bundle.folder), (1, tmp_path)):
        done = CliRunner().invoke(main, ["calibrate", "nowhere", "--bundle", str(bundle)])
        assert done.exit_code == code
        assert done.stderr.startswith("edgespec: ")
        assert done.stderr.count("\n") == 1
