"""The same decoder in plain operators of opset 21, against the one in those of opset 24."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from cli.main import main
from edgespec.architecture import Architecture
from edgespec.config import Request
from edgespec.manifest import COMPAT_OPSET, MAIN_OPSET, Bundle
from edgespec.sampling import Sampling
from engines.base import Row
from engines.drafters.model import ModelDrafter
from engines.exactness import measure_bundle, report_cases
from engines.machine.profiles import precisions, profile
from engines.onnxruntime_backend.engine import OrtSettings, load_draft, load_target
from export.bundle import ExportSettings, export
from export.install import install
from export.nodes import NodeWriter
from export.operators import Rows, operators
from tests.export.test_graph import FAMILIES, logits, make

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
SHAPES = Architecture(
    family="llama",
    vocabulary=10,
    hidden=576,
    layers=1,
    heads=9,
    kv_heads=3,
    head_dim=64,
    intermediate=8,
    norm_epsilon=1e-5,
    context=512,
    tied=False,
    qk_norm=False,
)

WIDE = ("qwen3", {"num_key_value_heads": 1, "head_dim": 64})


def exported(source, out, precision="fp32", opset=COMPAT_OPSET, **settings):
    return export(
        ExportSettings(str(source), out, precisions=precisions(precision), opset=opset, **settings)
    )


def trimmed_and_trained(tiny, place):
    """Below `place`: a draft of `tiny` with every other id, and an exit head after a layer."""
    draft = shutil.copytree(tiny, place / "draft")
    tensors = load_file(draft / "model.safetensors")
    tensors["edgespec.kept_ids"] = np.arange(0, 300, 2)
    save_file(tensors, draft / "model.safetensors")
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "edgespec": {"vocabulary": 150}}))
    heads = {
        "exit.1.norm.weight": np.ones(64, np.float16),
        "exit.1.down.weight": np.ones((8, 64), np.float16),
        "exit.1.up.weight": np.ones((64, 8), np.float16),
    }
    said = {"target": "tiny", "hidden": 64, "layers": 3}
    save_file(heads, place / "heads", metadata={"edgespec": json.dumps(said)})
    return draft, place / "heads"


@pytest.fixture(scope="module")
def everything(tmp_path_factory, tiny_llama_folder):
    """Both opsets by precision: segments, a trained exit head, a draft with some ids alone."""
    place = tmp_path_factory.mktemp("everything")
    draft, heads = trimmed_and_trained(tiny_llama_folder, place)

    def bundle(precision, opset):
        return exported(
            tiny_llama_folder,
            place / f"{precision}-{opset}",
            precision,
            opset,
            split=(1,),
            exit_heads=heads,
            drafts=(("cpu-compat", str(draft)), ("cpu-int4", str(draft))),
        )

    return {
        precision: (bundle(precision, MAIN_OPSET), bundle(precision, COMPAT_OPSET))
        for precision in ("fp32", "fp16", "int8", "int4")
    }


def interface(model):
    return [
        (value.name, value.type.tensor_type.elem_type, str(value.type.tensor_type.shape))
        for value in [*model.graph.input, *model.graph.output]
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_graphs_are_plain_and_look_the_same_from_outside(everything, precision):
    bundles = everything[precision]
    pairs = [
        (bundles[0].path(name), bundles[1].path(name))
        for name in bundles[0].manifest.files
        if name.startswith("target/") and name.endswith(".onnx")
    ]
    assert len(pairs) == 4
    drafts = bundles[1].manifest.drafts
    pairs.append(tuple(bundles[1].path(drafts[name].graph) for name in ("cpu-int4", "cpu-compat")))
    for usual, plain in pairs:
        onnx.checker.check_model(str(plain), full_check=True)
        model = onnx.load(plain, load_external_data=False)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
        assert model.ir_version == 10
        for node in model.graph.node:
            assert node.domain == ""
            onnx.defs.get_schema(node.op_type, 21)  # raises where it came later
        assert interface(model) == interface(onnx.load(usual, load_external_data=False))


def test_the_manifest_says_which(everything):
    usual, plain = (bundle.manifest for bundle in everything["fp32"])
    assert (usual.target.opset, plain.target.opset) == (24, 21)
    for manifest in (usual, plain):
        assert {name: draft.opset for name, draft in manifest.drafts.items()} == {
            "cpu-compat": 21,
            "cpu-int4": 24,
        }


def test_new_exit_heads_are_written_like_the_target(everything, tmp_path):
    before = everything["fp32"][1]
    folder = shutil.copytree(before.folder, tmp_path / "bundle")
    after = install(Bundle.open(folder), before.folder.parent / "heads", {}, None)
    assert (
        after.manifest.files["target/exit-00.onnx"] == before.manifest.files["target/exit-00.onnx"]
    )


def test_the_command_line_takes_the_targets_opset(tiny_llama_folder, tmp_path):
    out = str(tmp_path / "bundle")
    options = ["--opset", "21", "--draft", "self", "--profile", "cpu-compat"]
    result = CliRunner().invoke(main, ["export", str(tiny_llama_folder), "--out", out, *options])
    assert result.exit_code == 0, result.output
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(main, ["inspect", out]).output
    words = " ".join(shown.split())
    assert "opset 21" in words
    assert f"cpu-compat llama {profile('cpu-compat').precisions} 3 21" in words


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_near_the_main_graphs(tmp_path, family):
    make(tmp_path / "model", *FAMILIES[family])
    ids = np.random.default_rng(0).integers(3, 160, 90).tolist()
    found = []
    for opset in (MAIN_OPSET, COMPAT_OPSET):
        bundle = exported(tmp_path / "model", tmp_path / str(opset), opset=opset, split=(1, 3))
        engine = load_target(bundle, OrtSettings())
        slot = engine.open()
        cuts = ((0, 40), (40, 45), (45, 46), (46, 90))
        rows = [Row(slot, start, ids[start:end], end - start) for start, end in cuts]
        found.append(np.concatenate([logits(engine, row) for row in rows]))
    assert np.abs(found[0] - found[1]).max() <= 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_other_precisions_are_near_too(everything, precision):
    """Int8 activations may round the last bit of rotary positions to another step."""
    ids = np.random.default_rng(0).integers(3, 300, 90).tolist()
    found = []
    for bundle in everything[precision]:
        engine = load_target(bundle, OrtSettings())
        found.append(logits(engine, Row(engine.open(), 0, ids, 90)).astype(np.float64))
    error = np.sqrt(((found[0] - found[1]) ** 2).mean() / (found[0] ** 2).mean())
    assert error <= 0.01


@pytest.mark.parametrize(
    ("precision", "family", "threads"),
    [
        ("fp32", "llama, grouped", (1, 2)),
        ("int8", "llama, grouped", (1, 2)),
        ("int4", "llama, grouped", (1, 2)),
        ("fp32", "one wide head for keys", (1, 4)),
    ],
)
def test_every_way_of_computing_gives_the_same_bits(tmp_path, precision, family, threads):
    """Also with more threads than heads for keys, where they share out the columns of one."""
    families = {**FAMILIES, "one wide head for keys": WIDE}
    make(tmp_path / "model", *families[family])
    bundle = exported(tmp_path / "model", tmp_path / "bundle", precision)
    cases = measure_bundle(bundle, threads)
    assert all(case.identical for case in cases), report_cases(cases)


def test_answers_are_the_targets_own(everything, house):
    usual, plain = everything["fp32"]
    engines = {
        "main": load_target(usual, OrtSettings()),
        "plain": load_target(plain, OrtSettings()),
    }
    engine = load_draft(plain, "cpu-compat", OrtSettings(min_tokens=1))
    draft = ModelDrafter(engine, "plain")
    for name, target in engines.items():
        home = house(target)
        for seed, temperature in enumerate((0.0, 0.7, 1.0)):
            request = Request((5, 6, 7 + seed), 40, Sampling(temperature, seed=seed))
            answer = home.answer(draft, request)
            assert answer.stats.token_ids == home.alone(request), name


def run(opset, what, feed, *inputs):
    """One of the operators over `feed`; `what` writes it."""
    graph = NodeWriter(precisions("fp32"), opset)
    values = {name: graph.input(name, shape, kind) for name, shape, kind in inputs}
    graph.output(what(graph, operators(graph), values), "y", ["b", "h", "t", "d"], FLOAT)
    model = ir.to_proto(graph.model("operator")).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    return session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0]


ROWS = [("p", ["b", "t"], INT64), ("s", ["b"], INT64), ("l", ["b"], INT64)]
QUERY = ("q", ["b", 9, "t", 64], FLOAT)
CACHE = [(name, ["b", 3, "c", 64], FLOAT) for name in ("k", "v")]
NEW = ("n", ["b", 3, "t", 64], FLOAT)


def layers(graph, chosen, values):
    angles = np.arange(512)[:, None] / 10000 ** (np.arange(32) / 32)
    cos = graph.constant("cos", np.cos(angles).astype(np.float32))
    sin = graph.constant("sin", np.sin(angles).astype(np.float32))
    return chosen.layers(Rows(values["p"], values["s"], values["l"], cos, sin), SHAPES, exact=True)


def attend(graph, chosen, values):
    shared = layers(graph, chosen, values)
    return shared.attend("y", values["q"], values["k"], values["v"])


def write(graph, chosen, values):
    return layers(graph, chosen, values).write("y", values["k"], values["n"])


def rotate(graph, chosen, values):
    return layers(graph, chosen, values).rotate("y", values["q"])


def norm(graph, chosen, values):
    weight = graph.constant("w", np.linspace(-2, 2, 64, dtype=np.float32))
    return chosen.norm("y", values["q"], weight, 1e-5)


def swish(graph, chosen, values):
    return chosen.swish("y", values["q"])


@pytest.fixture(params=[(1, 2, 256), (4, 5, 512), (1, 64, 256)])
def feed(request):
    """Batch, tokens and capacity; every row somewhere else."""
    batch, tokens, capacity = request.param
    generator = np.random.default_rng(0)
    starts = generator.integers(0, capacity - tokens, batch)

    def floats(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    return {
        "p": starts[:, None] + np.arange(tokens),
        "s": starts,
        "l": starts + tokens,
        "q": floats(batch, 9, tokens, 64),
        "k": floats(batch, 3, capacity, 64),
        "v": floats(batch, 3, capacity, 64),
        "n": floats(batch, 3, tokens, 64),
    }


@pytest.mark.parametrize(
    ("what", "inputs"),
    [
        (attend, [*ROWS, QUERY, *CACHE]),
        (write, [*ROWS, CACHE[0], NEW]),
        (norm, [QUERY]),
        (swish, [QUERY]),
    ],
)
def test_an_operator_gives_the_same_bits(feed, what, inputs):
    usual, plain = (run(opset, what, feed, *inputs) for opset in (MAIN_OPSET, COMPAT_OPSET))
    assert np.array_equal(usual, plain)


def test_rotary_positions_differ_in_the_last_bit_only(feed):
    """ONNX Runtime's own operator multiplies and adds in one rounding."""
    usual, plain = (run(o, rotate, feed, *ROWS, QUERY) for o in (MAIN_OPSET, COMPAT_OPSET))
    assert np.abs(usual - plain).max() <= 1e-6


def test_what_a_query_may_not_see_weighs_nothing(feed):
    """Also where it is so large that its score is no number."""
    clean = run(COMPAT_OPSET, attend, feed, *ROWS, QUERY, *CACHE)
    signs = np.sign(np.random.default_rng(1).standard_normal(feed["k"].shape)).astype(np.float32)
    for row, length in enumerate(feed["l"]):
        feed["k"][row, :, length:] = 3e38 * signs[row, :, length:]
        feed["v"][row, :, length:] = 3e38
    assert np.array_equal(run(COMPAT_OPSET, attend, feed, *ROWS, QUERY, *CACHE), clean)


def test_the_write_is_in_place(feed):
    cache = feed["k"].copy()
    graph = NodeWriter(precisions("fp32"), COMPAT_OPSET)
    values = {name: graph.input(name, shape, kind) for name, shape, kind in [*ROWS, CACHE[0], NEW]}
    graph.output(write(graph, operators(graph), values), "y", CACHE[0][1], FLOAT)
    model = ir.to_proto(graph.model("write")).SerializeToString()
    binding = (session := onnxruntime.InferenceSession(model)).io_binding()
    arrays = {**feed, "k": cache}
    for name in (value.name for value in session.get_inputs()):
        array = arrays[name]
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, cache.shape, cache.ctypes.data)
    session.run_with_iobinding(binding)
    for row, start in enumerate(feed["s"]):
        end = feed["l"][row]
        feed["k"][row, :, start:end] = feed["n"][row]
    assert np.array_equal(cache, feed["k"])
