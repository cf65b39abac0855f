"""Sessions of ONNX Runtime: their options, their errors, and which graph they load."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from engines.cache.pools import CAPACITIES
from engines.machine.profiles import CPU
from engines.onnxruntime_backend.rewrite import rewritten
from engines.onnxruntime_backend.two_queries import with_two_queries

log = logging.getLogger("edgespec.engines")

ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    # ONNX Runtime's own errors have no common base class but Exception.
    *(
        kind
        for kind in vars(_native).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)


@dataclass(frozen=True)
class OrtSettings:
    """Settings of a graph in ONNX Runtime and of the engine over it."""

    threads: int = 1
    slots: int = 16
    min_tokens: int = 2
    """Tokens that `Attention` computes at least: 2 for exactness. A draft may use 1: the target
    verifies its tokens anyway."""
    arena: bool = True
    """ORT's memory arena: faster, but keeps its peak. Off on devices with little memory."""
    providers: tuple[str, ...] = (CPU,)
    capacities: tuple[int, ...] = CAPACITIES
    """Positions that a slot may hold."""
    spin_us: int = 0
    """Microseconds that a thread of the pool waits awake for more work of a step; 0: it sleeps."""
    rewrite: bool = True
    """True to rewrite graphs for a CPU: drafts that run single tokens (`rewrite.py`), and targets
    (`two_queries.py`)."""


def reason(error: Exception) -> str:
    """Returns the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_session(
    path: Path, settings: OrtSettings, providers: Sequence[Any], *, draft: bool, placement: bool
) -> Any:
    """Loads a file. Raises one of `ORT_ERRORS`.

    `placement`: record which provider runs which node. A graph may be rewritten; if this ONNX
    Runtime does not take the result, the file is loaded as it is.
    """
    model = None
    if settings.rewrite and list(providers) == [CPU]:
        model = _rewritten(path, settings, draft=draft)
    if model is not None:
        options = session_options(settings, placement=placement)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
        )
        try:
            return onnxruntime.InferenceSession(model, options, providers=providers)
        except ORT_ERRORS as error:
            log.info("ONNX Runtime loads %s as it is: %s", path, reason(error))
    options = session_options(settings, placement=placement)
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def _rewritten(path: Path, settings: OrtSettings, *, draft: bool) -> bytes | None:
    """Returns a file's graph as it is loaded instead of the file; None to load the file."""
    try:
        if draft and settings.min_tokens == 1:
            return rewritten(path.read_bytes(), settings.capacities)
        if not draft and settings.min_tokens > 1:
            return with_two_queries(path.read_bytes())
    except OSError:  # reported when the file is loaded
        pass
    return None


def session_options(settings: OrtSettings, *, placement: bool = False) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = settings.arena
    options.log_severity_level = 3  # errors only
    spins = settings.spin_us > 0
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    if spins:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(settings.spin_us))
        options.add_session_config_entry("session.force_spinning_stop", "1")  # between the steps
    # int8 dot products for QDQ weights: 2.7 times fp32 for one row, same bits in any batch.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if placement:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options
