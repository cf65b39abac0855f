"""The settings of the two processes. The command line takes its defaults from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgespec.policies import (
    DraftPolicy,
    EvictionPolicy,
    LinkLimits,
    ModePolicy,
    SchedulerPolicy,
)
from edgespec.sampling_parameters import Sampling

NGRAM = "ngram"
NO_DRAFTER = "none"
LOOPBACK = "tcp://127.0.0.1:5555"
STATUS_URL = "http://127.0.0.1:5556"
"""Status address that `edgespec top` asks unless told otherwise."""


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


Backend = Literal["onnxruntime", "tensorrt", "torch", "torch-fast"]


@dataclass(frozen=True)
class CloudSettings:
    bind: str = LOOPBACK
    key: Path | None = None
    """CurveZMQ secret; needed beyond loopback."""
    clients: Path | None = None
    """Folder of the public keys of devices that may connect."""
    any_client: bool = False
    """Admit every device that knows the cloud's public key; beyond loopback this or `clients`."""
    max_sessions: int = 256
    """Sessions open at once; one more is asked to come later."""
    kv_memory: int = 0
    """Bytes of the KV cache, that of the draft beside the target included; 0: a quarter of the
    memory that is free at the start, of a GPU's half."""
    max_batch_rows: int = 0
    """Sessions of one step of the target; 0: as many as pay."""
    max_batch_tokens: int = 256
    """Prompt tokens of one step, at least one row whatever its length."""
    prefill_chunk: int = 64
    """Prompt tokens of one row, at most; beside other sessions fewer."""
    max_draft: int = 32
    """Draft tokens of one round; the rest is ignored."""
    hints: bool = True
    """Run the exit heads for sessions that ask for them."""
    backend: Backend = "onnxruntime"
    """What runs the target: a name of `engines.backends`."""
    draft: str = ""
    """Profile of the bundle's draft that also runs here, beside the target; empty: none."""
    idle_timeout: float = 60.0
    """Seconds without a word from its device after which a session is closed. A device that comes
    back opens it again from what it holds, so this costs time only."""
    drain_timeout: float = 30.0
    """Seconds that SIGTERM leaves to answers in flight."""
    threads: int = 0
    """Of the target; 0: every core this process may use."""
    trace: Path | None = None
    """File for the trace of this process."""
    status: str = ""
    """HOST:PORT of `/metrics`, `/health` and what `edgespec top` shows; empty: none."""
    energy: Path | None = None
    """Root of the file tree that energy and heat are read from, `/` but for recorded ones; None:
    not measured."""
    scheduler: SchedulerPolicy = SchedulerPolicy()
    eviction: EvictionPolicy = EvictionPolicy()
    limits: LinkLimits = LinkLimits()


Mode = Literal["auto", "edge", "cloud-draft", "cloud"]
PreDraft = Literal["tree", "exits", "none"]


@dataclass(frozen=True)
class Tactics:
    """What each side does while it would wait. Whatever is chosen, the text is the same."""

    pre_draft: PreDraft = "tree"
    """What the device drafts while a verdict is out. `tree`: on and on, sent as it comes. `exits`:
    in lock-step, for each exit's prediction (arXiv 2505.21594). `none`: nothing, in lock-step."""
    branches: bool = True
    """With `tree`: also for outcomes other than full acceptance."""
    hints: bool | None = None
    """Ask for hints; None: where the cloud says that exit heads cost little, and for `exits`."""
    lockstep: bool | None = None
    """The target does nothing until a draft is here; None: in lock-step only."""

    @property
    def streaming(self) -> bool:
        return self.pre_draft == "tree"


@dataclass(frozen=True)
class EdgeSettings:
    connect: str = LOOPBACK
    server_key: Path | None = None
    """The cloud's public CurveZMQ key; needed beyond loopback."""
    key: Path | None = None
    """This device's secret CurveZMQ key, for clouds that admit known devices only."""
    drafter: str = ""
    """A profile of the bundle, `ngram`, or `none`; empty: the bundle's only or first draft."""
    mode: Mode = "auto"
    """Who drafts: the device, the cloud beside its target, nobody, or whoever it pays for."""
    tactics: Tactics = Tactics()
    target_rate: float = 0.0
    """Tokens a second that are enough; 0: as fast as possible."""
    draft_length: int = 4
    """Tokens drafted a round in lock-step; streaming has no rounds to fill."""
    threads: int = 0
    """Of the draft; 0: what its profile says."""
    connect_timeout: float = 10.0
    """Seconds to wait for the cloud's welcome."""
    patience: float = 5.0
    """Seconds of silence after which the device asks where the answer stands."""
    give_up: float = 60.0
    """Seconds of silence after which it stops."""
    trace: Path | None = None
    """File for the trace of this process."""
    energy: Path | None = None
    """As in `CloudSettings`."""
    modes: ModePolicy = ModePolicy()
    drafting: DraftPolicy = DraftPolicy()
    limits: LinkLimits = LinkLimits()


@dataclass(frozen=True)
class Request:
    """One answer to be written."""

    prompt: tuple[int, ...]
    max_tokens: int = 256
    sampling: Sampling = Sampling()
    stops: tuple[str, ...] = ()


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/edgespec`, or `~/.cache/edgespec`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgespec"
