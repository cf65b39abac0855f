"""Checkpoints whose matrices are packed integers, as compressed-tensors writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from edgespec.errors import CheckpointError, UnsupportedModel
from engines.base import Row, final_choices
from engines.machine.profiles import precisions
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from export.bundle import ExportSettings, export
from export.quantise import quantise
from export.sources.open import open_checkpoint

DOWN = "model.layers.1.mlp.down_proj"
QUERY = "model.layers.0.self_attn.q_proj"
WEIGHTS = {"type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def words(values: np.ndarray, bits: int) -> np.ndarray:
    each = 32 // bits
    parts = (values.astype(np.int64) + 2 ** (bits - 1)).reshape(len(values), -1, each)
    packed = sum(parts[:, :, place] << (place * bits) for place in range(each))
    return np.ascontiguousarray(packed.astype(np.uint32)).view(np.int32)


def group(bits: int, **changes: object) -> dict[str, object]:
    weights = {"num_bits": bits, **WEIGHTS, **changes}
    return {"targets": ["Linear"], "weights": weights, "input_activations": None}


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def declare(folder: Path, *groups: object, **changes: object) -> None:
    declared = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {f"group_{number}": one for number, one in enumerate(groups)},
        "ignore": ["lm_head"],
    }
    edit(folder, quantization_config={**declared, **changes})


@pytest.fixture
def packed(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """Layers 0 and 1 packed, the down projections in int8 and the others in int4; layer 2 is not,
    and `plain` beside it has the same numbers as floats."""
    folder, plain = tmp_path / "packed", tmp_path / "plain"
    shutil.copytree(tiny_llama_folder, folder)
    shutil.copytree(tiny_llama_folder, plain)
    tensors = load_file(folder / "model.safetensors")
    floats = dict(tensors)
    for name in [n for n in tensors if "_proj" in n and ".2." not in n]:
        bits = 8 if "down" in name else 4
        values, scales = quantise(tensors.pop(name).T, bits)
        values, scales = values.T.astype(np.int8), scales.T.astype(np.float16)
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.weight_packed"] = words(values, bits)
        tensors[f"{stem}.weight_scale"] = np.ascontiguousarray(scales)
        tensors[f"{stem}.weight_shape"] = np.array(values.shape)
        floats[name] = np.ascontiguousarray(
            values * np.repeat(scales.astype(np.float32), 32, axis=1)
        )
    save_file(tensors, folder / "model.safetensors")
    save_file(floats, plain / "model.safetensors", metadata={"format": "pt"})
    declare(folder, group(4), group(8, actorder="weight"))
    return folder


def change(folder: Path, **tensors: np.ndarray | None) -> None:
    """Replaces parts of QUERY, or removes them."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    for part, values in tensors.items():
        stored.pop(f"{QUERY}.{part}", None)
        if values is not None:
            stored[f"{QUERY}.{part}"] = values
    save_file(stored, path)


def test_words_are_read_as_compressed_tensors_writes_them(packed: Path) -> None:
    """Figures from `pack_to_int32` of compressed-tensors 0.20."""
    low = np.array([[1985229328, -19088744, 1985229328, -19088744]], np.int32)
    high = np.array([[1867130112, 64928148, -1754116824, 721871292, -1080396464, 1395526116,
                      -406676104, 2069246220]], np.int32)  # fmt: skip
    change(packed, weight_packed=np.tile(low, (64, 2)))
    blocks = open_checkpoint(str(packed)).blocks(f"{QUERY}.weight")
    assert blocks is not None and blocks.bits == 4
    assert blocks.values[5].tolist() == [number % 16 - 8 for number in range(64)]
    change(packed, weight_packed=np.tile(high, (64, 2)))
    blocks = open_checkpoint(str(packed)).blocks(f"{QUERY}.weight")
    assert blocks is not None and blocks.bits == 8
    assert blocks.values[63].tolist() == [number % 32 * 37 % 256 - 128 for number in range(64)]


def test_integers_and_the_numbers_they_stand_for(packed: Path) -> None:
    checkpoint = open_checkpoint(str(packed))
    plain = open_checkpoint(str(packed.parent / "plain"))
    assert set(checkpoint.names()) == set(plain.names())
    for name in checkpoint.names():
        expected = plain.tensor(name)
        np.testing.assert_array_equal(checkpoint.tensor(name), expected)
        np.testing.assert_array_equal(checkpoint.rows(name, 3, 7), expected[3:7])
        assert checkpoint.shape(name) == expected.shape
        blocks = checkpoint.blocks(name)
        assert checkpoint.bits(name) == (blocks and blocks.bits)
        assert (blocks is None) == ("_proj" not in name or ".2." in name)
        if blocks is not None:
            assert blocks.scales.dtype == np.float32
            products = blocks.values.reshape(len(expected), -1, 32) * blocks.scales[:, :, None]
            np.testing.assert_array_equal(products.reshape(expected.shape), expected)
    assert checkpoint.nbytes(f"{QUERY}.weight") == 64 * 64 // 2 + 64 * 2 * 2 + 16
    assert checkpoint.tensor(f"{DOWN}.weight").dtype == np.float32


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_integers_are_exported_as_they_are(packed: Path, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "bundle"
    bundle = export(ExportSettings(str(packed), out, precisions=precisions(precision)))
    bundle.check()
    checkpoint = open_checkpoint(str(packed))
    graph = ir.load(bundle.path("target/segment-00.onnx")).graph
    for name, kind in ((f"{QUERY}.weight", "INT4"), (f"{DOWN}.weight", "INT8")):
        blocks = checkpoint.blocks(name)
        assert blocks is not None
        values = graph.initializers[f"{name}.values"].const_value
        scales = graph.initializers[f"{name}.scales"].const_value
        assert values is not None and scales is not None
        assert values.dtype.name == kind
        np.testing.assert_array_equal(values.numpy().astype(np.int8), blocks.values.T)
        np.testing.assert_array_equal(scales.numpy(), blocks.scales.T)
    rounded = graph.initializers["model.layers.2.mlp.down_proj.weight.values"].const_value
    assert rounded is not None and rounded.dtype.name == precision.upper()
    engine = load_target(bundle, OrtSettings())
    ids = list(range(5, 45))
    (choices,) = final_choices(engine, [Row(engine.open(), 0, ids, len(ids))])
    assert choices is not None and choices.finite


def test_a_float_precision_dequantises(packed: Path, tmp_path: Path) -> None:
    bundle = export(ExportSettings(str(packed), tmp_path / "bundle"))
    model = transformers.AutoModelForCausalLM.from_pretrained(packed.parent / "plain")
    ids = list(range(5, 45))
    with torch.no_grad():
        expected = model.eval()(torch.tensor([ids])).logits[0].numpy()
    engine = load_target(bundle, OrtSettings())
    (choices,) = final_choices(engine, [Row(engine.open(), 0, ids, len(ids))])
    assert choices is not None
    assert np.abs(choices.logits - expected).max() <= 1e-3


def test_a_packed_head_and_embedding(packed: Path, tmp_path: Path) -> None:
    """Tied: the integers are the head's, and the embedding's rows are what they stand for."""
    path = packed / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    values, scales = quantise(tensors.pop("model.embed_tokens.weight").T, 8)
    tensors["model.embed_tokens.weight_packed"] = words(values.T, 8)
    tensors["model.embed_tokens.weight_scale"] = np.ascontiguousarray(scales.T)
    tensors["model.embed_tokens.weight_shape"] = np.array([300, 64])
    save_file(tensors, path)
    edit(packed, tie_word_embeddings=True)
    settings = ExportSettings(str(packed), tmp_path / "out", precisions=precisions("int4"))
    bundle = export(settings)
    name = "model.embed_tokens.weight"
    head = ir.load(bundle.path("target/head.onnx")).graph
    stored = head.initializers[f"{name}.head.values"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), values)
    first = ir.load(bundle.path("target/segment-00.onnx")).graph
    table = first.initializers[f"{name}.fp16"].const_value
    assert table is not None
    floats = open_checkpoint(str(packed)).tensor(name).astype(np.float16)
    np.testing.assert_array_equal(table.numpy(), floats)


@pytest.mark.parametrize(
    ("groups", "changes", "named"),
    [
        ([group(4)], {"quant_method": "gptq"}, "with gptq"),
        ([group(4)], {"format": "int-quantized"}, "format int-quantized"),
        ([group(4)], {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ([group(4)], {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ([], {}, "config_groups"),
        ([["Linear"]], {}, "a group without weights"),
        ([{**group(8), "input_activations": {"num_bits": 8}}], {}, "input_activations"),
        ([group(4), group(3)], {}, "num_bits 3"),
        ([group(4, type="float")], {}, "type float"),
        ([group(4, symmetric=False)], {}, "symmetric False"),
        ([group(4, group_size=128)], {}, "group_size 128"),
        ([group(4, strategy="channel")], {}, "strategy channel"),
        ([group(4, actorder="group")], {}, "actorder group"),
    ],
)
def test_other_quantisations_are_refused(
    packed: Path, groups: list[object], changes: dict[str, object], named: str
) -> None:
    declare(packed, *groups, **changes)
    with pytest.raises(UnsupportedModel, match=named) as refused:
        open_checkpoint(str(packed))
    assert "16-bit original" in str(refused.value)


@pytest.mark.parametrize("part", ["weight_g_idx", "weight_zero_point"])
def test_parts_of_other_quantisations_are_refused(packed: Path, part: str) -> None:
    change(packed, **{part: np.zeros(64, np.int32)})
    with pytest.raises(UnsupportedModel, match=rf"q_proj\.{part}"):
        open_checkpoint(str(packed))


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        ("weight_packed", np.zeros((64, 9), np.int32), "do not fit together"),
        ("weight_packed", np.zeros((64, 8), np.float32), "dtypes F32, F16, I64"),
        ("weight_scale", np.ones((64, 1), np.float16), "do not fit together"),
        ("weight_scale", None, "comes without .*q_proj.weight_scale"),
        ("weight_shape", None, "comes without .*q_proj.weight_shape"),
        ("weight_shape", np.array([64, 0]), "do not fit together"),
        ("weight_shape", np.array([64, 64, 1]), "do not fit together"),
        ("weight", np.zeros((64, 64), np.float32), "stored twice"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    packed: Path, part: str, values: np.ndarray | None, named: str
) -> None:
    change(packed, **{part: values})
    with pytest.raises(CheckpointError, match=named) as refused:
        open_checkpoint(str(packed))
    assert QUERY in str(refused.value)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_no_positive_numbers(packed: Path, tmp_path: Path, scale: float) -> None:
    scales = np.ones((64, 2), np.float16)
    scales[7, 1] = scale
    change(packed, weight_scale=scales)
    settings = ExportSettings(str(packed), tmp_path / "out", precisions=precisions("int8"))
    with pytest.raises(CheckpointError, match=rf"{QUERY}\.weight has scales"):
        export(settings)
    assert not (tmp_path / "out").exists()


def test_check_without_what_transformers_needs(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.check import check

    def lacks(*_: object, **__: object) -> None:
        raise ImportError("loading it requires compressed-tensors")

    settings = ExportSettings(str(packed), tmp_path / "out")
    bundle = export(settings)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lacks)
    with pytest.raises(CheckpointError, match=r"cannot be compared: .* compressed-tensors"):
        check(bundle, settings)
