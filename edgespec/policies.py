"""Tunable numbers of the two runtimes, as frozen dataclasses that benches can vary.

A number belongs here if changing it changes speed, memory or waiting, and never the text. Limits of
the wire format stand in `edgespec.protocol`. Units are in the names: `_s` seconds, `_tokens`,
`_rows`, `_bytes`, `_steps`; a name without a unit is a ratio or a probability.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerPolicy:
    """How the cloud chooses the rows of its next step."""


@dataclass(frozen=True)
class EvictionPolicy:
    """When the cloud takes KV-cache slots away, and what it keeps for later sessions."""


@dataclass(frozen=True)
class ModePolicy:
    """When a device starts and stops drafting.

    To overtake is to commit a drafted token before the cloud has decoded it by itself.
    """

    start_overtaking_probability: float = 0.05
    """Probability of overtaking the cloud from which a device starts to draft."""
    stop_overtaking_probability: float = 0.025
    """Probability of overtaking the cloud below which a device stops drafting."""
    least_token_share: float = 0.02
    """Share of the committed tokens that the device must have drafted, or it stops."""
    patient_overtaking_probability: float = 0.3
    """Probability of overtaking from which a device goes on although its share is too small: far
    from the cloud the first success takes longer than one trial."""
    hoped_acceptance: float = 0.8
    """Acceptance rate that a device which stopped assumes when it considers another try."""
    least_rate_ratio: float = 0.95
    """Fraction of the cloud's stated rate below which the device stops drafting (device and cloud
    may share one machine). A rate measured without drafting must be reached in full."""
    doubtful_overtaking_probability: float = 0.5
    """Probability of overtaking below which a device first measures a cloud that has a draft."""
    first_look_tokens: int = 48
    """Tokens of that measurement."""
    unshared_batch_rows: float = 1.5
    """Mean rows of a target step up to which the rate of one session says something: in a larger
    batch a device that stops drafting would only slow itself down."""
    trial_tokens: int = 64
    """Tokens over which drafting is judged, at least."""
    pause_tokens: int = 256
    """Tokens after which a device that stopped tries again. Doubled each time it stops again."""
    longest_pause_tokens: int = 4096
    cheap_hint_step_share: float = 0.03
    """Share of a target step up to which exit heads are used without being asked for."""
    step_smoothing: float = 0.2
    """Weight of a new measurement in the running mean of the target step."""
    extra_path_step_share: float = 0.4
    """Share of a draft step that each further path of a batch adds, until that is measured."""
    measured_trips: int = 8
    """Round trips that are remembered; the shortest one counts."""
    measured_draft_steps: int = 15
    """Draft steps that are remembered for each batch size; the median counts."""


@dataclass(frozen=True)
class DraftPolicy:
    """Which draft steps a device takes, and when drafted tokens are sent."""

    ahead_tokens: int = 24
    """Tokens that a path may have beyond the committed ones."""
    kept_paths: int = 12
    """Paths of one answer; the least probable branch is dropped first."""
    worth_floor: float = 0.06
    """Worth of a step, relative to that of a path which has just got ahead of the cloud, below
    which it is not drafted: about one such step in 16 would save the target a step."""
    least_worth: float = 1e-3
    """Worth below which nothing is drafted at any distance."""
    hint_agreement: float = 0.5
    """Probability that an exit head is right, where the bundle has no measurement."""
    pack_s: float = 0.002
    """Time that drafted tokens wait for more to share their packet."""
    pack_tokens: int = 16
    """Number of drafted tokens that are sent at once."""
    shared_pack_step_share: float = 1 / 8
    """Share of a target step that drafted tokens wait at least while many sessions share the
    target: packets then cost the cloud time, and the next step is far away."""


@dataclass(frozen=True)
class LinkLimits:
    """Bounds of queues, packets and silence on a link."""

    connections: int = 4096
    """Connections of a cloud; fewer where its file descriptors do not suffice."""
    hello_timeout_s: float = 10.0
    """Time within which a new connection must have sent a valid Hello."""
    hello_bytes: int = 65_536
    """Bytes of a connection that may wait before its Hello is read."""
    backlog_bytes: int = 1 << 20
    """Bytes of a connection, beyond one packet of the largest size, that may wait to be read."""
    total_backlog_bytes: int = 64 << 20
    """Bytes of all connections that may wait to be read."""
    guard_interval_s: float = 0.01
    """Interval at which connections are compared with these bounds."""
