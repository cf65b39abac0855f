"""A checkpoint as a GGUF file of llama.cpp, to measure its speed.

The rows of queries and keys keep the order of Hugging Face, which llama.cpp changes for some
families, and there is no tokenizer. The file is for measuring speed, not for writing text.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from edgespec.checkpoint import Checkpoint
from edgespec.progress import progress

NO_TOKENIZER = "none"


def write_gguf(path: Path, checkpoint: Checkpoint) -> None:
    """Writes matrices in fp16 and vectors in fp32, one tensor after another."""
    sizes = checkpoint.architecture
    writer = gguf.GGUFWriter(path, sizes.family)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[sizes.family.upper()], sizes.layers)
    _write_settings(writer, checkpoint)
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        dtype = _dtype(shape)
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor_info(place, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total_bytes = sum(checkpoint.nbytes(name) for name in checkpoint.names())
    with progress("writing GGUF", total_bytes) as advance:
        for name in checkpoint.names():
            writer.write_tensor_data(
                checkpoint.tensor(name).astype(_dtype(checkpoint.shape(name)), copy=False)
            )
            advance(checkpoint.nbytes(name))
    writer.close()


def _dtype(shape: tuple[int, ...]) -> np.dtype[np.float16] | np.dtype[np.float32]:
    return np.dtype(np.float32) if len(shape) == 1 else np.dtype(np.float16)


def _write_settings(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    """Writes the shapes. The checkpoint is one of `bench.lab.random_checkpoint`."""
    sizes = checkpoint.architecture
    writer.add_context_length(sizes.context)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.intermediate)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)
    theta = checkpoint.rope.parameters["rope_theta"]
    assert isinstance(theta, float)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(sizes.norm_epsilon)
    writer.add_tokenizer_model(NO_TOKENIZER)
