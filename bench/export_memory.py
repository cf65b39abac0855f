"""Peak memory and time of an export, on a checkpoint far larger than the memory it may take.

A Llama of TinyLlama's shape (1.1 B parameters, fp16) is written from random numbers and exported by
a child process, whose peak resident memory the kernel reports when it ends (`wait4`). Linux lets a
child inherit its parent's peak, so this process must stay small too: it writes the checkpoint a few
rows at a time. Time is given beside that of a plain copy of the checkpoint in the same run.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models

from edgespec.errors import EdgespecError
from edgespec.progress import Advance, progress

LIMIT_MB = 1200
"""What an export of this model may take at most."""
PRECISIONS = ("fp16", "int4")
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}
_LAYERS_A_SHARD = 8
_BLOCK = 1 << 21
"""Numbers written, or bytes copied, at a time."""

Shapes = dict[str, tuple[int, ...]]


class Measured(NamedTuple):
    peak_mb: float
    seconds: float
    bundle_mb: float


def run(*, as_json: bool) -> None:
    """Prints a table; with `as_json`, one JSON object as the last line.

    Needs twice the checkpoint's 2.2 GB, and a bundle's, in the temporary folder. Raises
    `EdgespecError` where the disk has less, or where an export fails.
    """
    shards = _shards(CONFIG)
    total = sum(_nbytes(shard) for shard in shards)
    with tempfile.TemporaryDirectory(prefix="edgespec-bench-") as temporary:
        place = Path(temporary)
        _check_disk(place, 2 * total)
        checkpoint = place / "checkpoint"
        with progress("writing weights", total) as advance:
            _write_checkpoint(checkpoint, shards, advance)
        copy_seconds = _copy(checkpoint, place / "copy")
        measured = {p: _export(checkpoint, place / f"bundle-{p}", p) for p in PRECISIONS}
    figures = {
        "peak_rss_mb": {p: round(m.peak_mb) for p, m in measured.items()},
        "seconds": {p: round(m.seconds, 1) for p, m in measured.items()},
        "bundle_mb": {p: round(m.bundle_mb) for p, m in measured.items()},
        "checkpoint_mb": round(total / 1e6),
        "copy_seconds": round(copy_seconds, 1),
        "times_copy": {p: round(m.seconds / copy_seconds, 1) for p, m in measured.items()},
        "limit_mb": LIMIT_MB,
        "within_limit": all(m.peak_mb <= LIMIT_MB for m in measured.values()),
    }
    _print(figures)
    if as_json:
        print(json.dumps(figures))


def _shards(config: dict[str, Any]) -> list[Shapes]:
    """Tensor shapes, file by file: embedding and head, then a few layers in each."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    table = (config["vocab_size"], hidden)
    layer: Shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    ends: Shapes = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (hidden,),
        "lm_head.weight": table,
    }
    layers = range(config["num_hidden_layers"])
    return [ends] + [
        {
            f"model.layers.{number}.{name}.weight": shape
            for number in layers[start : start + _LAYERS_A_SHARD]
            for name, shape in layer.items()
        }
        for start in layers[::_LAYERS_A_SHARD]
    ]


def _nbytes(shapes: Shapes) -> int:
    return sum(2 * math.prod(shape) for shape in shapes.values())


def _check_disk(place: Path, needed: int) -> None:
    # A bundle in fp16 is as large as the checkpoint, and the copy is gone by then.
    free = shutil.disk_usage(place).free
    if free < needed * 1.05:
        raise EdgespecError(
            f"this needs {needed * 1.05 / 1e9:.1f} GB in {place.parent} and {free / 1e9:.1f} GB "
            "are free; point TMPDIR at a larger disk"
        )


def _write_checkpoint(folder: Path, shards: Sequence[Shapes], advance: Advance) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(folder / "tokenizer.json"))
    generator = np.random.default_rng(0)
    where: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / name, shapes, generator, advance)
        where |= dict.fromkeys(shapes, name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_shard(
    path: Path, shapes: Shapes, generator: np.random.Generator, advance: Advance
) -> None:
    """A safetensors file: length of the header, header, then the tensors one behind the other."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in _random(offset // 2, generator):
            file.write(block)
            advance(len(block))


def _random(numbers: int, generator: np.random.Generator) -> Iterator[bytes]:
    """fp16 numbers between -0.03 and 0.03, little-endian."""
    for start in range(0, numbers, _BLOCK):
        block = generator.random(min(_BLOCK, numbers - start), np.float32)
        yield ((block - np.float32(0.5)) * np.float32(0.06)).astype("<f2").tobytes()


def _copy(source: Path, copy: Path) -> float:
    """Seconds to read and write everything in a folder; the copy is removed again."""
    copy.mkdir()
    start = time.perf_counter()
    for path in sorted(source.iterdir()):
        with path.open("rb") as reader, (copy / path.name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, _BLOCK)
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    return seconds


def _export(checkpoint: Path, out: Path, precision: str) -> Measured:
    """Exports in a child process; the bundle is removed again."""
    command = [sys.executable, "-m", "edgespec", "export", str(checkpoint)]
    command += ["--out", str(out), "--precision", precision]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise EdgespecError(f"exporting as {precision} failed with exit code {child.returncode}")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return Measured(usage.ru_maxrss * 1024 / 1e6, seconds, size / 1e6)


def _print(figures: dict[str, Any]) -> None:
    table = Table(title=f"export of a checkpoint of {figures['checkpoint_mb']} MB", box=None)
    table.add_column("precision")
    for column in ("peak memory", "time", "times a plain copy", "bundle"):
        table.add_column(column, justify="right")
    for precision in PRECISIONS:
        table.add_row(
            precision,
            f"{figures['peak_rss_mb'][precision]} MB",
            f"{figures['seconds'][precision]} s",
            f"{figures['times_copy'][precision]}",
            f"{figures['bundle_mb'][precision]} MB",
        )
    console = Console(highlight=False)
    console.print(table)
    verdict = "within" if figures["within_limit"] else "above"
    console.print(f"{verdict} the limit of {figures['limit_mb']} MB")
