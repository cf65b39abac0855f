"""`edgespec build`: engines in a bundle, up to date or built again, and nothing half done."""

import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from cli.main import main
from edgespec.errors import BundleError, EngineError, UsageError
from edgespec.manifest import SELF_DRAFT, Built, Bundle, Calibration, File
from engines.machine.profiles import precisions, profile
from engines.tensorrt_backend.api import Installation, installation, load
from engines.tensorrt_backend.matching import matching_engine
from export.bundle import ExportSettings, export
from export.install import install
from export.publish import described, republish, staging_folder, write_manifest
from export.tensorrt import build as engines
from export.tensorrt.build import build
from export.tensorrt.plan import (
    BuildSettings,
    calls,
    capacities,
    check_capacities,
    check_version,
    chosen_graphs,
    widened,
)

pytest.importorskip("tensorrt_rtx")
HEAD = "target/head.engine"


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_llama_folder):
    """Without engines; do not change it."""
    settings = ExportSettings(
        str(tiny_llama_folder),
        tmp_path_factory.mktemp("plain") / "bundle",
        precisions=precisions("int4"),
        segments=2,
        drafts=(("cpu-int8", SELF_DRAFT), ("cpu-fp32", SELF_DRAFT)),
    )
    return export(settings)


@pytest.fixture(scope="module")
def complete(plain, tmp_path_factory):
    """Everything built for `cuda` at 256 positions, by the command; do not change it."""
    folder = shutil.copytree(plain.folder, tmp_path_factory.mktemp("built") / "bundle")
    arguments = ["build", str(folder), "--profile", "cuda", "--capacity", "256"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "has no draft for cuda; building its draft cpu-int8" in done.stderr
    assert "built 5 engines with TensorRT-RTX" in done.stderr
    return Bundle.open(folder)


@pytest.fixture
def bundle(complete, tmp_path):
    """A copy of it."""
    return Bundle.open(shutil.copytree(complete.folder, tmp_path / "bundle"))


def built(bundle, **settings):
    """The bundle after another `build`, and what it said."""
    said = []
    settings = BuildSettings("cuda", **({"capacities": (256,)} | settings))
    return build(bundle, settings, said.append), " ".join(said)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_graph_has_an_engine_that_the_manifest_names(plain, complete):
    assert {engine.file for engine in complete.manifest.engines} == {
        "draft/cpu-int8/model-256.engine",
        "target/segment-00-256.engine",
        "target/segment-01-256.engine",
        "target/exit-00.engine",
        HEAD,
    }
    complete.check()
    assert set(files(complete.folder)) == {"manifest.json", *complete.manifest.files}
    assert complete.manifest.target_fingerprint == plain.manifest.target_fingerprint
    for name, file in plain.manifest.files.items():
        assert complete.manifest.files[name] == file
    sources = {engine.graph: engine.sources for engine in complete.manifest.engines}
    assert set(sources["target/segment-00.onnx"]) == {
        "target/segment-00.onnx",
        "target/segment-00.data",
        "target/embedding.data",
        "target/rotary.data",
    }


def test_they_match_here(complete):
    here = installation(load())
    for engine in complete.manifest.engines:
        assert matching_engine(complete, engine.graph, 256, "cuda", here) == engine


def test_what_is_up_to_date_stays(bundle):
    before = files(bundle.folder)
    _, said = built(bundle)
    assert "5 engines up to date; --force builds again" in said
    assert files(bundle.folder) == before


def test_a_damaged_engine_is_built_again_and_alone(bundle):
    bundle.path(HEAD).write_bytes(b"no engine")
    after, said = built(bundle)
    assert "built 1 engine with" in said and "4 engines up to date before" in said
    after.check()


def test_exits_that_were_replaced_are_built_again(bundle):
    """As `calibrate` does, which knows nothing of engines."""
    stale = [
        msgspec.structs.replace(e, sources={**e.sources, e.graph: "0" * 64})
        if e.graph == "target/exit-00.onnx"
        else e
        for e in bundle.manifest.engines
    ]
    bundle.path("manifest.json").unlink()
    write_manifest(bundle.folder, msgspec.structs.replace(bundle.manifest, engines=stale))
    after, said = built(Bundle.open(bundle.folder), graphs="target")
    assert "built 1 engine with" in said
    matching_engine(after, "target/exit-00.onnx", 256, "cuda", installation(load()))


def test_another_capacity_joins_and_what_cannot_run_here_goes(bundle):
    elsewhere = [
        msgspec.structs.replace(e, version="1.0") if e.file.startswith("draft") else e
        for e in bundle.manifest.engines
    ]
    bundle.path("manifest.json").unlink()
    write_manifest(bundle.folder, msgspec.structs.replace(bundle.manifest, engines=elsewhere))
    after, _ = built(Bundle.open(bundle.folder), graphs="draft", capacities=(512,))
    assert {e.capacity for e in after.manifest.engines if e.graph.startswith("draft")} == {512}
    assert not after.path("draft/cpu-int8/model-256.engine").exists()
    assert HEAD in {e.file for e in after.manifest.engines}
    after.check()


def test_what_users_keep_in_a_bundle_stays(bundle):
    bundle.path("notes.txt").write_text("mine")
    bundle.path(HEAD).unlink()
    after, _ = built(bundle)
    assert after.path("notes.txt").read_text() == "mine"


def test_an_interrupt_leaves_nothing(bundle):
    before = files(bundle.folder)
    command = [sys.executable, "-m", "edgespec", "build", str(bundle.folder)]
    command += ["--profile", "cuda", "--capacity", "256", "--force"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(bundle.folder.parent.glob(".bundle.*/**/.*.onnx")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in said
    assert files(bundle.folder) == before
    assert list(bundle.folder.parent.iterdir()) == [bundle.folder]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(bundle):
    before = files(bundle.folder)
    command = [sys.executable, "-m", "edgespec", "build", str(bundle.folder)]
    command += ["--profile", "cuda", "--capacity", "256", "--force", "--graphs", "draft"]

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, 1 << 13))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=little_room)
    assert done.returncode == 1
    assert f"edgespec: writing {bundle.folder} failed: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(bundle.folder) == before
    assert list(bundle.folder.parent.iterdir()) == [bundle.folder]


@pytest.fixture
def during(plain, tmp_path, monkeypatch):
    """Builds the target of a copy of `plain`, and does something to it after the first engine."""

    def run(other):
        bundle = Bundle.open(shutil.copytree(plain.folder, tmp_path / "bundle"))
        todo = [lambda: other(Bundle.open(bundle.folder))]

        def build_engine(*arguments, **more):
            real(*arguments, **more)
            if todo:
                todo.pop()()

        real = engines.build_engine
        monkeypatch.setattr(engines, "build_engine", build_engine)
        built(bundle, graphs="target")
        assert list(bundle.folder.parent.iterdir()) == [bundle.folder]
        after = Bundle.open(bundle.folder)
        after.check()
        return after

    return run


def test_two_builds_at_once_both_count(during, complete):
    after = during(lambda bundle: built(bundle, graphs="draft"))
    assert {e.file for e in after.manifest.engines} == {e.file for e in complete.manifest.engines}


def test_figures_that_come_during_a_build_stay(during):
    figures = Calibration(agreement=0.7, slope=1.0, offset=0.0, error=0.03, tokens=5)
    after = during(lambda bundle: install(bundle, None, {"cpu-int8": figures}, 0.9))
    assert after.manifest.drafts["cpu-int8"].calibration == figures
    assert after.manifest.target.agreement == 0.9
    assert after.path(HEAD).is_file()


def test_a_bundle_exported_again_meanwhile_takes_no_engines(during, tiny_llama_folder, tmp_path):
    def again(bundle):
        export(ExportSettings(str(tiny_llama_folder), bundle.folder, force=True))

    with pytest.raises(BundleError, match=r"was replaced while engines were built from it; build"):
        during(again)
    assert Bundle.open(tmp_path / "bundle").manifest.engines == []


def test_a_bundle_exported_again_takes_no_old_figures(plain, tiny_llama_folder, tmp_path):
    before = Bundle.open(shutil.copytree(plain.folder, tmp_path / "bundle"))
    export(ExportSettings(str(tiny_llama_folder), before.folder, force=True))
    with pytest.raises(BundleError, match="was exported again in the meantime"):
        install(before, None, {}, 0.9)


def test_many_may_publish_at_once(plain, tmp_path):
    folder = shutil.copytree(plain.folder, tmp_path / "bundle")

    def add(name):
        bundle = Bundle.open(plain.folder)
        with staging_folder(Bundle(folder, bundle.manifest)) as new:
            (new / name).write_text(name)
            file = {name: described(new / name)}
            republish(
                Bundle(folder, bundle.manifest),
                new,
                lambda now: msgspec.structs.replace(now, files={**now.files, **file}),
            )

    names = [f"note-{number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, names))
    after = Bundle.open(folder)
    after.check()
    assert set(names) <= set(after.manifest.files)
    assert list(tmp_path.iterdir()) == [folder]


def test_nobody_stands_in_a_folder_that_is_replaced(bundle, monkeypatch):
    monkeypatch.chdir(bundle.folder)
    with pytest.raises(BundleError, match="it is the current folder"):
        built(Bundle.open(Path(".")), force=True)


def test_what_runs_without_an_engine_does_not_miss_it(plain, tmp_path):
    folder = shutil.copytree(plain.folder, tmp_path / "bundle")
    one = Built(
        file="draft/cpu-int8/model-512.engine", graph="draft/cpu-int8/model.onnx", sources={},
        profile="cuda", capacity=512, floats="fp16", api="tensorrt_rtx", version="1", platform="x",
        capability="", shapes=[],
    )  # fmt: skip
    files = {**plain.manifest.files, one.file: File(sha256="0", size=1)}
    write_manifest(folder, msgspec.structs.replace(plain.manifest, engines=[one], files=files))
    Bundle.open(folder).check("draft/cpu-int8")
    with pytest.raises(BundleError, match=r"model-512\.engine is missing"):
        Bundle.open(folder).check("draft/cpu-int8", engines=True)


def test_damaged_weights_are_not_built(bundle):
    path = bundle.path("draft/cpu-int8/model.data")
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(BundleError, match=r"model\.data is damaged"):
        built(bundle, force=True)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (BuildSettings("rpi5"), "profile rpi5 is for Raspberry Pi 5.* no TensorRT"),
        (BuildSettings("jetson"), "there is no profile 'jetson'"),
        (BuildSettings("cuda", draft="cpu-int4"), "no draft for profile 'cpu-int4'"),
        (BuildSettings("jetson-orin", draft="cpu-int8"), "opset 24, and jetson-orin takes 21"),
        (BuildSettings("jetson-orin"), "has no draft for jetson-orin; export one"),
    ],
)
def test_what_cannot_be_asked(plain, settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        build(plain, settings, print)


def test_a_bundle_without_a_draft(plain, tmp_path):
    folder = shutil.copytree(plain.folder, tmp_path / "bundle")
    write_manifest(folder, msgspec.structs.replace(plain.manifest, drafts={}))
    with pytest.raises(
        UsageError, match=r"has no draft for jetson-thor; export one with --draft MODEL --profile"
    ):
        build(Bundle.open(folder), BuildSettings("jetson-thor"), print)


def test_no_engine_is_built_of_a_draft_for_llama_cpp(plain, tmp_path):
    folder = shutil.copytree(plain.folder, tmp_path / "bundle")
    shutil.move(folder / "draft/cpu-fp32", folder / "draft/llamacpp-int8")
    draft, file = plain.manifest.drafts["cpu-fp32"], "draft/llamacpp-int8/model.gguf"
    (folder / "draft/llamacpp-int8/model.onnx").rename(folder / file)
    drafts = {"llamacpp-int8": msgspec.structs.replace(draft, graph=file)}
    kept = {name: each for name, each in plain.manifest.files.items() if "draft/" not in name}
    files = {**kept, file: described(folder / file)}
    write_manifest(folder, msgspec.structs.replace(plain.manifest, drafts=drafts, files=files))
    bundle = Bundle.open(folder)
    with pytest.raises(UsageError, match=r"the draft llamacpp-int8 is for llama\.cpp"):
        build(bundle, BuildSettings("cuda", draft="llamacpp-int8"), print)
    with pytest.raises(UsageError, match="has no draft for jetson-thor"):
        build(bundle, BuildSettings("jetson-thor"), print)


@pytest.mark.parametrize(
    ("drafts", "hardware", "chosen"),
    [
        (("cpu-int4", "gpu-fp16"), "cuda", "gpu-fp16"),
        (("cpu-int4", "cuda"), "cuda", "cuda"),
        (("cpu-int4", "cpu-compat"), "jetson-orin", "cpu-compat"),
        (("rpi4", "rpi5"), "cuda", "rpi4"),
    ],
)
def test_which_draft_is_built(plain, drafts, hardware, chosen):
    one = plain.manifest.drafts["cpu-int8"]
    named = {
        name: msgspec.structs.replace(one, graph=name, opset=profile(name).opset) for name in drafts
    }
    bundle = Bundle(plain.folder, msgspec.structs.replace(plain.manifest, drafts=named))
    said = []
    settings = BuildSettings(hardware, graphs="draft")
    assert list(chosen_graphs(bundle, settings, said.append)) == [chosen]
    assert len(said) == (chosen != hardware)


def test_a_tensorrt_older_than_the_profile():
    old = Installation("tensorrt", "8.2.1.8", "5.3", "linux-aarch64")
    with pytest.raises(EngineError, match=r"jetson-orin need TensorRT 10\.3 or newer.* has 8\.2"):
        check_version("jetson-orin", profile("jetson-orin"), old)


@pytest.mark.parametrize(
    ("context", "found"),
    [(100, (512,)), (512, (512,)), (513, (512, 2048)), (2048, (512, 2048)), (9999, (512, 2048))],
)
def test_capacities_reach_the_context(context, found):
    assert capacities(profile("cuda"), context) == found


@pytest.mark.parametrize(
    ("opset", "head_dim", "context", "chosen", "allowed"),
    [
        (21, 64, 512, (256, 512), ""),
        (21, 64, 512, (300,), "multiples of 256 up to 512"),
        (21, 64, 512, (512, 128), "multiples of 256 up to 512"),
        (21, 128, 512, (128, 384), ""),
        (21, 128, 512, (64,), "multiples of 128 up to 512"),
        (24, 64, 512, (300, 128), ""),
        (24, 64, 512, (100_000,), "numbers from 1 up to 512"),
        (24, 64, 100, (512,), ""),
        (24, 64, 9999, (10_240,), ""),
        (24, 64, 9999, (10_241,), "up to 10240"),
        (24, 64, 512, (0,), "numbers from 1 up to 512"),
        (24, 64, 512, (-256,), "numbers from 1 up to 512"),
    ],
)
def test_capacities_that_graphs_cannot_have(plain, opset, head_dim, context, chosen, allowed):
    target = plain.manifest.target
    shapes = msgspec.structs.replace(target.architecture, head_dim=head_dim)
    target = msgspec.structs.replace(target, opset=opset, architecture=shapes)
    manifest = msgspec.structs.replace(plain.manifest, target=target, context=context)
    bundle = Bundle(plain.folder, manifest)
    graphs = [segment.graph for segment in target.segments]
    if not allowed:
        check_capacities(bundle, graphs, chosen, profile("cuda"))
        return
    with pytest.raises(UsageError, match=f"--capacity {chosen[-1]} does not fit .* {allowed}$"):
        check_capacities(bundle, graphs, chosen, profile("cuda"))
    if opset == 21:
        check_capacities(bundle, ["draft/cpu-int8/model.onnx"], chosen, profile("cuda"))


@pytest.mark.parametrize("capacity", ["100000", "0", "-1"])
def test_a_wrong_capacity_is_one_sentence(plain, capacity):
    arguments = ["build", str(plain.folder), "--profile", "cuda", "--capacity", capacity]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2 and f"{capacity} " in done.stderr and "uilt" not in done.stderr


def test_a_copy_without_the_target(plain, tmp_path):
    folder = shutil.copytree(
        plain.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("target")
    )
    after, said = built(Bundle.open(folder))
    assert "the target was left out of this copy" in said and "building its draft alone" in said
    assert [e.graph for e in after.manifest.engines] == ["draft/cpu-int8/model.onnx"]
    assert not (folder / "target").exists()
    for graphs in ("target", "all"):
        with pytest.raises(UsageError, match=r"left out of this copy, .*--graphs draft, or"):
            built(after, graphs=graphs)


@pytest.mark.parametrize("name", ["cuda", "jetson-orin", "jetson-thor"])
def test_some_optimisation_profile_takes_every_call(name):
    """All rows with as many tokens as a draft may have, and a row as long as a chunk."""
    found = profile(name)
    shapes = calls(found.batch, found.tokens)
    for tokens in range(1, min(64, found.tokens[2]) + 1):
        for rows in range(1, found.batch[2] + 1):
            assert any(shape.take(rows, tokens) for shape in shapes)
    assert any(shape.take(1, found.tokens[2]) for shape in shapes)
    for shape in shapes:
        for low, usual, high in (shape.batch, shape.tokens, shape.selected):
            assert 1 <= low <= usual <= high


def test_no_row_is_longer_than_a_slot():
    assert max(shape.tokens[2] for shape in calls((1, 2, 4), (1, 5, 512), 256)) == 256


def test_int8_weights_are_told_from_others(plain, complete):
    """The draft has them, the int4 target in its head alone."""
    assert widened(plain, [e for e in complete.manifest.engines if e.file == HEAD])
    assert widened(plain, [e for e in complete.manifest.engines if e.file.startswith("draft")])
    wide = msgspec.structs.replace(plain.manifest.target, precisions=precisions("fp16"))
    bundle = Bundle(plain.folder, msgspec.structs.replace(plain.manifest, target=wide))
    assert not widened(bundle, [e for e in complete.manifest.engines if e.file == HEAD])
