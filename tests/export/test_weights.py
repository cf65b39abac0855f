"""Weights between a checkpoint and the data files: their bits, their checksums, the memory."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from edgespec.errors import CheckpointError
from export.data_files import ALIGNMENT_BYTES, DataFiles
from export.quantise import quantise
from export.sources.folder import FolderCheckpoint
from export.weights import QuantisedTensors, WeightFolder

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 257,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
DTYPES = {"F16": np.float16, "F32": np.float32, "BF16": ml_dtypes.bfloat16}
DOWN = "model.layers.0.mlp.down_proj.weight"
HEAD = "lm_head.weight"


def tensors(config=CONFIG):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    wide = hidden // config["num_attention_heads"]
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        HEAD: (config["vocab_size"], hidden),
    }
    for name, shape in {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (wide * config["num_key_value_heads"], hidden),
        "self_attn.v_proj": (wide * config["num_key_value_heads"], hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }.items():
        shapes[f"model.layers.0.{name}.weight"] = shape
    generator = np.random.default_rng(3)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def checkpoint(folder: Path, dtype="F16", change=None, config=CONFIG):
    """A folder as transformers writes it; `change` alters the tensors first."""
    arrays = {name: array.astype(DTYPES[dtype]) for name, array in tensors(config).items()}
    if change:
        change(arrays)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(folder / "tokenizer.json"))
    header, offset = {}, 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    raw = b"".join(array.tobytes() for array in arrays.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw)
    return FolderCheckpoint(folder), arrays


def stored(tensor):
    """What an external tensor says, read by hand."""
    raw = Path(tensor.base_dir, tensor.location).read_bytes()
    return np.frombuffer(raw[tensor.offset : tensor.offset + tensor.length], np.uint8)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_projection_is_turned_whatever_it_was_stored_as(tmp_path, place, dtype, precision):
    source, arrays = checkpoint(tmp_path / "model", dtype)
    with DataFiles(place) as files:
        folder = WeightFolder(place, files, source, lambda _: None)
        tensor = folder.linear("layers", DOWN, precision)
        files.described()
    wanted = arrays[DOWN].T.astype(np.float32 if precision == "fp32" else np.float16)
    assert tuple(tensor.shape) == wanted.shape
    assert stored(tensor).tobytes() == np.ascontiguousarray(wanted).tobytes()


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", [DOWN, HEAD])  # 96 and 257 rows
def test_rounding_in_slices_is_rounding_at_once(tmp_path, place, precision, name):
    source, arrays = checkpoint(tmp_path / "model")
    with DataFiles(place) as files:
        folder = WeightFolder(place, files, source, lambda _: None)
        matrix = folder.linear("layers", name, precision)
        files.described()
    assert isinstance(matrix, QuantisedTensors)
    values, scales = quantise(arrays[name].T, 8 if precision == "int8" else 4)
    assert stored(matrix.scales).tobytes() == scales.tobytes()
    raw = stored(matrix.values)
    if precision == "int4":
        raw = np.stack([raw & 15, raw >> 4], 1).reshape(-1)[: values.size]
        assert np.array_equal(raw, values.astype(np.int8).reshape(-1).view(np.uint8) & 15)
    else:
        assert raw.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("dtype", "precision"), [("F16", "fp16"), ("BF16", "int4"), ("F32", "fp16")]
)
def test_one_bad_number_anywhere_is_named(tmp_path, place, dtype, precision):
    def spoil(arrays):
        arrays[DOWN][95, 159] = 70000.0 if dtype == "F32" else -np.inf

    source, _ = checkpoint(tmp_path / "model", dtype, spoil)
    with DataFiles(place) as files:
        folder = WeightFolder(place, files, source, lambda _: None)
        with pytest.raises(CheckpointError, match=r"down_proj.*not finite"):
            folder.linear("layers", DOWN, precision)


def test_checksums_are_those_of_the_files(place):
    with DataFiles(place) as files:
        first = files.append("one.data", [b"a" * 100, memoryview(b"b" * 31)])
        second = files.append("one.data", [b"c" * 7])
        files.append("two.data", [bytes(10)] * 100)
        described = files.described()
    assert (first, second) == ((0, 131), (3 * ALIGNMENT_BYTES, 7))
    assert (place / "one.data").read_bytes() == b"a" * 100 + b"b" * 31 + bytes(61) + b"c" * 7
    assert set(described) == {place / "one.data", place / "two.data"}
    for path, file in described.items():
        assert file.size == path.stat().st_size
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_disk_that_refuses_is_an_error(tmp_path):
    with DataFiles(tmp_path / "nowhere") as files:
        files.append("one.data", [b"a"])
        with pytest.raises(FileNotFoundError):
            files.described()


def test_no_more_than_two_matrices_are_held(tmp_path, place):
    """One that is being written and one that is being turned, what is read at a time, and the
    small ones among the pieces that wait."""
    config = CONFIG | {"hidden_size": 1536, "intermediate_size": 5120, "num_attention_heads": 12}
    source, arrays = checkpoint(tmp_path / "model", config=config)
    largest = max(array.nbytes for array in arrays.values())
    names = [name for name, array in arrays.items() if array.ndim == 2 and "layers" in name]
    del arrays
    tracemalloc.start()
    with DataFiles(place) as files:
        folder = WeightFolder(place, files, source, lambda _: None)
        for name in names * 2:
            folder.linear("layers", name, "fp16")
        files.described()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * largest + 6 * (1 << 22)
