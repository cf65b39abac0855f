"""Drafts as GGUF files, read back with the gguf package."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from edgespec.checkpoint import Blocks
from edgespec.errors import CheckpointError, UnsupportedModel
from engines.machine.profiles import precisions
from export.gguf_file import write_gguf
from export.quantise import quantise
from export.sources.gguf import GgufCheckpoint, rotary_order
from export.sources.open import open_checkpoint
from tests.export.sources.test_checkpoint import make_model
from tests.export.sources.test_checkpoint import write_gguf as write_model
from tests.export.test_graph import FAMILIES, make

INT4 = precisions("int4", head="int8", embedding="int8")


def written(checkpoint, folder, chosen=INT4):
    path = folder / "model.gguf"
    write_gguf(path, checkpoint, chosen, 512, "draft")
    return gguf.GGUFReader(path)


def floats(reader, name):
    """A tensor as floats, [out, in] or [n]."""
    (tensor,) = [tensor for tensor in reader.tensors if tensor.name == name]
    return gguf.dequantize(tensor.data, tensor.tensor_type)


@pytest.mark.parametrize("family", ["llama, grouped", "llama 3", "qwen2, tied", "qwen3"])
def test_our_reader_finds_the_same_model(tmp_path, family, monkeypatch):
    make(tmp_path / "model", *FAMILIES[family])
    source = open_checkpoint(str(tmp_path / "model"))
    written(source, tmp_path, precisions("fp32"))
    # The file has no tokenizer, which a checkpoint needs.
    monkeypatch.setattr("export.sources.gguf.tokenizer_from_gguf", lambda _: source.tokenizer)
    back = GgufCheckpoint(tmp_path / "model.gguf")
    assert back.architecture == source.architecture
    assert set(back.names()) == set(source.names())
    for name in source.names():
        assert np.array_equal(back.tensor(name), source.tensor(name)), name
    assert np.allclose(back.rope.inverse_frequencies, source.rope.inverse_frequencies, rtol=1e-6)


def test_layers_are_int4_and_the_vocabulary_int8(tmp_path):
    make(tmp_path / "model", *FAMILIES["qwen2, tied"])
    source = open_checkpoint(str(tmp_path / "model"))
    reader = written(source, tmp_path)
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == Kind.Q8_0
    assert kinds["blk.3.ffn_down.weight"] == Kind.Q4_0
    assert kinds["blk.0.attn_q.bias"] == kinds["output_norm.weight"] == Kind.F32
    values, scales = quantise(source.tensor("model.layers.3.mlp.down_proj.weight").T, 4)
    expected = values.astype(np.float32) * np.repeat(scales, 32, axis=0)
    stored = floats(reader, "blk.3.ffn_down.weight")
    assert np.abs(stored - expected.T).max() <= 2e-3 * np.abs(expected).max(), "fp16 scales"
    exact = source.tensor("model.embed_tokens.weight")
    assert np.abs(floats(reader, "token_embd.weight") - exact).max() <= np.abs(exact).max() / 200


def test_integers_of_a_quantised_checkpoint_are_kept(tmp_path, monkeypatch):
    make(tmp_path / "model", *FAMILIES["llama, grouped"])
    source = open_checkpoint(str(tmp_path / "model"))
    generator, name = np.random.default_rng(0), "model.layers.1.self_attn.k_proj.weight"
    values = generator.integers(-8, 8, source.shape(name), dtype=np.int8)
    scales = np.full((values.shape[0], 2), 0.25, np.float32)
    read = []

    def blocks(_, asked):
        read.append(asked)
        return Blocks(values, scales, 4) if asked == name else None

    monkeypatch.setattr(type(source), "blocks", blocks)
    monkeypatch.setattr(type(source), "bits", lambda _, asked: 4 if asked == name else None)
    stored = floats(written(source, tmp_path, precisions("fp16")), "blk.1.attn_k.weight")
    assert np.array_equal(stored[rotary_order(len(values), 16)], values * 0.25)
    assert read.count(name) == 1


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("kind", "layers", "vocabulary"),
    [("Q4_1", "Q4_1", "Q4_1"), ("Q5_1", "Q4_0", "Q5_1"), ("Q8_0", "Q4_0", "Q8_0")],
)
def test_small_blocks_of_a_gguf_file_are_kept(tmp_path, family, kind, layers, vocabulary):
    model = make_model(family, vocab_size=96, hidden_size=64, head_dim=16, intermediate_size=96)
    target = write_model(tmp_path / "target.gguf", model, kind=Kind[kind], tokens=96)
    reader = written(open_checkpoint(str(target)), tmp_path)
    own = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    matrices = [one for one in reader.tensors if len(one.shape) == 2]
    assert matrices and {one.name for one in reader.tensors} == set(own)
    for one in matrices:
        kept = vocabulary if one.name in ("token_embd.weight", "output.weight") else layers
        assert one.tensor_type == Kind[kept], one.name
        assert (kept != kind) or np.array_equal(one.data, own[one.name].data), one.name


@pytest.mark.parametrize("family", ["llama, yarn", "trimmed", "odd"])
def test_what_llama_cpp_cannot_run_is_refused(tmp_path, family, monkeypatch):
    changes = {"hidden_size": 72, "head_dim": 16} if family == "odd" else {}
    kind, more = FAMILIES.get(family, ("llama", {}))
    make(tmp_path / "model", kind, {**more, **changes})
    source = open_checkpoint(str(tmp_path / "model"))
    if family == "trimmed":
        monkeypatch.setattr(source, "kept_ids", np.arange(5))
    with pytest.raises(UnsupportedModel, match=r"cpu-int4|multiple of 32"):
        written(source, tmp_path)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    make(tmp_path / "model", *FAMILIES["llama"])
    source = open_checkpoint(str(tmp_path / "model"))
    rows = source.rows
    source.rows = lambda name, start, stop: np.full_like(rows(name, start, stop), np.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        written(source, tmp_path)
