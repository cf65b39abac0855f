"""The arithmetic fingerprint of a target: back end, its version, processor and precision.

Two clouds with the same bundle and the same fingerprint compute the same bits. With different
fingerprints, logits may differ by rounding, which decides between tokens that are almost equal.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from edgespec.manifest import Precisions
from engines.machine import installed
from engines.machine.system_files import ROOT, read_board, read_processor

_KERNELS = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "i8mm", "asimddp", "asimd")
"""CPU features that select the kernels of a back end, the first that is there first."""


def fingerprint(backend: str, precisions: Precisions, root: Path = ROOT) -> str:
    """Returns a readable text such as "onnxruntime 1.31.1, x86_64 avx512_vnni, fp32".

    `backend` is a name in `engines.backends`. `root` holds the CPU's description.
    """
    software, on_gpu = _software(backend)
    gpus = installed.gpus() if on_gpu else ()
    board = read_board(root) if backend == "tensorrt" else ""  # a Jetson lists no GPU
    processor = gpus[0].name if gpus else board or _cpu(root)
    return f"{software}, {processor}, {_precision(precisions)}"


def _software(backend: str) -> tuple[str, bool]:
    """Returns name and version of a back end, and whether it uses a GPU if there is one."""
    if backend == "tensorrt":
        found = installed.tensorrt()
        return " ".join(next(iter(found.items()), (backend, "of unknown version"))), True
    if backend == "onnxruntime":
        version, providers = installed.onnxruntime()
        return f"onnxruntime {version}", "CUDAExecutionProvider" in providers
    try:
        return f"{backend} {importlib.metadata.version('torch')}", True
    except importlib.metadata.PackageNotFoundError:
        return backend, True


def _cpu(root: Path) -> str:
    features = read_processor(root).features
    kernels = next((name for name in _KERNELS if name in features), "")
    return f"{platform.machine()} {kernels}".strip()


def _precision(precisions: Precisions) -> str:
    layers, head = precisions.layers, precisions.head
    return layers if head == layers else f"{layers} with head {head}"
