"""Settings of the two processes. The command line takes its defaults from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgespec.grammar import Grammar
from edgespec.policies import (
    DraftPolicy,
    EvictionPolicy,
    GrammarLimits,
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
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


SMALL_SHARE_SESSIONS = 4
"""Sessions that one device may have in a small cloud, if a place is left for others."""
Backend = Literal["onnxruntime", "tensorrt", "torch", "torch-fast"]


@dataclass(frozen=True)
class CloudSettings:
    bind: str = LOOPBACK
    key: Path | None = None
    """File of the secret CurveZMQ key; needed if other machines can connect."""
    clients: Path | None = None
    """Folder of the public keys of devices that may connect."""
    any_client: bool = False
    """Admit every device that knows the cloud's public key; beyond loopback this or `clients`."""
    max_sessions: int = 256
    """Most sessions open at once; a further device is asked to try again later."""
    sessions_per_device: int = 0
    """Most unfinished sessions of one key, or of one connection without keys; 0: a quarter of
    `max_sessions`, or up to 4 if that leaves a place for others."""
    kv_memory: int = 0
    """Bytes of all KV caches, that of the cloud draft included; 0: a quarter of the memory that is
    free at the start, or half of a GPU's."""
    device_quota: Path | None = None
    """JSON file with the quotas of devices (`cloud_runtime.quotas`)."""
    share_prefixes: bool = False
    """Share prompt prefixes between devices with different keys. The time of a prefill then tells
    whether another device's prompt begins the same way."""
    max_batch_rows: int = 0
    """Most sessions in one step of the target; 0: no bound."""
    max_batch_tokens: int = 256
    """Most prompt tokens in one step; a single row may exceed it."""
    prefill_chunk: int = 64
    """Most prompt tokens of one row; fewer while other sessions run."""
    max_draft: int = 32
    """Most draft tokens of one round; further ones are ignored."""
    hints: bool = True
    """Run the exit heads for sessions that ask for them."""
    backend: Backend = "onnxruntime"
    """Back end of the target, a name in `engines.backends`."""
    draft: str = ""
    """Profile of the bundle's draft that runs in the cloud too; empty: none."""
    idle_timeout: float = 60.0
    """Seconds without a message from its device after which a session is closed. A session that
    waits for its device is closed after the same time without a message about it, whatever pings
    arrive. A device that returns opens the session again from its own tokens, so closing costs time
    only."""
    drain_timeout: float = 30.0
    """Seconds to finish answers in flight after SIGTERM."""
    threads: int = 0
    """Threads of the target; 0: the number that `doctor --tune` kept, or every usable core."""
    trace: Path | None = None
    """File for the trace of this process."""
    status: str = ""
    """HOST:PORT of `/metrics`, `/health` and what `edgespec top` shows; empty: none."""
    status_host: tuple[str, ...] = ()
    """Further host names by which clients may address the status port."""
    energy: Path | None = None
    """Root of the file tree with the sensors of energy and heat, `/` except for recordings; None:
    not measured."""
    scheduler: SchedulerPolicy = SchedulerPolicy()
    eviction: EvictionPolicy = EvictionPolicy()
    limits: LinkLimits = LinkLimits()
    grammars: GrammarLimits = GrammarLimits()

    @property
    def device_places(self) -> int:
        """Most unfinished sessions of one device, without a quota of its own."""
        few = min(SMALL_SHARE_SESSIONS, self.max_sessions - 1)
        return self.sessions_per_device or max(1, few, self.max_sessions // 4)


Mode = Literal["auto", "edge", "cloud-draft", "cloud"]
PreDraft = Literal["tree", "exits", "none"]
Offline = Literal["refuse", "draft"]


@dataclass(frozen=True)
class Tactics:
    """Choices for the time in which a side waits for the other. They never change the answer."""

    pre_draft: PreDraft = "tree"
    """Drafting while the device waits for a verdict. `tree`: continuously, each token sent at
    once. `exits`: in lockstep, for each exit head's prediction (arXiv 2505.21594). `none`: nothing,
    in lockstep."""
    branches: bool = True
    """If `tree`, draft for outcomes other than full acceptance too."""
    hints: bool | None = None
    """Ask for hints; None: only with `exits`, or if exit heads cost the cloud little."""
    lockstep: bool | None = None
    """The target waits for each draft; None: unless `pre_draft` is `tree`."""

    @property
    def streaming(self) -> bool:
        """True if the device sends drafted tokens without waiting for verdicts."""
        return self.pre_draft == "tree"


@dataclass(frozen=True)
class EdgeSettings:
    connect: str = LOOPBACK
    server_key: Path | None = None
    """File of the cloud's public CurveZMQ key; needed if the cloud is another machine."""
    key: Path | None = None
    """This device's secret CurveZMQ key, for clouds that admit known devices only."""
    drafter: str = ""
    """Profile of the bundle, `ngram` or `none`; empty: the bundle's first draft."""
    mode: Mode = "auto"
    """Side that drafts: the device, the cloud, none, or chosen by measurement."""
    tactics: Tactics = Tactics()
    target_rate: float = 0.0
    """Tokens a second that are enough; 0: as fast as possible."""
    draft_length: int = 4
    """Tokens drafted per round in lockstep; streaming does not use it."""
    threads: int = 0
    """Threads of the draft; 0: the number that `doctor --tune` kept, or the profile's."""
    connect_timeout: float = 10.0
    """Seconds to wait for the cloud's welcome."""
    patience: float = 5.0
    """Seconds of silence after which the device asks for the state of the answer."""
    give_up: float = 60.0
    """Seconds of silence after which the device stops with an error."""
    offline: Offline = "refuse"
    """`draft`: while the cloud is lost, answers go on with the device's draft model, and the pieces
    are labelled `unverified`. `refuse`: they wait, and end after `give_up`."""
    offline_after: float = 2.0
    """Seconds without a message about an answer after which it goes on without the cloud."""
    trace: Path | None = None
    """File for the trace of this process."""
    energy: Path | None = None
    """Root of the sensors' file tree, as in `CloudSettings`."""
    modes: ModePolicy = ModePolicy()
    drafting: DraftPolicy = DraftPolicy()
    limits: LinkLimits = LinkLimits()
    grammars: GrammarLimits = GrammarLimits()


@dataclass(frozen=True)
class Request:
    """A request for one answer: prompt tokens and sampling."""

    prompt: tuple[int, ...]
    max_tokens: int = 256
    sampling: Sampling = Sampling()
    stops: tuple[str, ...] = ()
    committed: tuple[int, ...] = ()
    """First tokens of the answer, if an earlier session has committed them."""
    logprobs: int | None = None
    """Number of likeliest tokens that each piece lists with their log-probabilities, beside its
    token's own; None: pieces have none."""
    grammar: Grammar | None = None
    """Grammar that the answer follows; None: any text."""
    prediction: tuple[int, ...] = ()
    """Tokens that the answer may repeat. Where it does, they are drafted without the draft model.
    """


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/edgespec`, or `~/.cache/edgespec`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgespec"
