"""Tunable numbers of the two runtimes, as frozen dataclasses that benches can vary.

A number belongs here if changing it changes speed, memory or waiting, and never the text. Limits of
the wire format stand in `edgespec.protocol`. Units are in the names: `_s` seconds, `_tokens`,
`_rows`, `_bytes`, `_steps`; a name without a unit is a ratio or a probability.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerPolicy:
    """How the cloud chooses its next step and admits sessions."""

    narrow_tokens: int = 2
    """Uncached tokens up to which a session decodes or verifies. A session with more is a prompt,
    which runs in chunks. A row of two tokens costs as much as a row of one."""
    short_row_tokens: int = 16
    """Longest row of a step that decodes or verifies for several sessions. Wider rows are prompt
    chunks, whose cost is modelled separately."""
    chunk_tokens: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Widths to choose from for a prompt chunk, rising."""
    chunk_steps: float = 2.0
    """Longest prompt chunk while other sessions are ready and early, in steps of those sessions."""
    lateness_s: float = 1.0
    """Lateness above which a session becomes no more urgent, so that no session starves."""
    pause_s: float = 0.5
    """A session that is early by more than this is paused while another session is late."""
    resume_s: float = 0.1
    """A paused session resumes when it is early by no more than this. The gap to `pause_s` limits
    how often its slot is moved."""
    late_weight: float = 2.0
    """Weight of the tokens of a late session when the width of a step is chosen."""
    turn_s: float = 1.0
    """Time for which the same sessions of one device run before others take their turn."""
    further_sessions_cost: float = 0.1
    """Largest share that second and further sessions of devices may add to the time of a step."""
    lookahead_tokens: int = 8
    """Draft tokens that a step waits for, or that the cloud draft adds, at most."""
    wait_options_count: int = 24
    """Moments to wait for that are compared, divided by the number of sessions."""
    shortest_wait_s: float = 0.001
    """A shorter wait only turns the loop."""
    memory_poll_s: float = 0.1
    """Longest wait while a session needs memory."""
    in_time_share: float = 0.3
    """Share of steps with a draft from the device above which the cloud draft does not draft for
    that session in a shared step."""
    in_time_smoothing: float = 0.1
    """Weight of the last step in that share."""
    reading_tokens: int = 16
    """Tokens to read that are charged to the cloud draft at most, where the device drafts too."""
    arrival_smoothing: float = 0.25
    """Weight of the last measurement of a device's draft interval and reaction time."""
    arrival_intervals: float = 1.0
    """Draft intervals after which an overdue token is not expected any more."""
    kept_paths: int = 32
    """Candidate paths of a session."""
    spare_paths: int = 16
    """Candidate paths above `kept_paths` at which the least likely ones are removed together."""
    path_tokens: int = 256
    """Tokens of a candidate path beyond the committed tokens; more are dropped."""
    cost_forgetting: float = 0.98
    """Weight of the past in the cost model, per step."""
    cost_memory_steps: float = 3.0
    """Weight of the steps measured at the start, in steps."""
    batch_rows_smoothing: float = 0.1
    """Weight of the last step in the mean number of rows that devices are told."""
    first_answer_s: float = 5.0
    """Assumed duration of an answer before any has ended."""
    answer_smoothing: float = 0.1
    """Weight of the last answer in the mean duration of answers."""
    longest_wait_s: float = 10.0
    """Longest expected wait for memory with which a session is admitted."""
    retry_ms: float = 1000.0
    """Shortest time after which a refused device may try again."""
    finished_sessions: int = 256
    """Finished sessions that are kept for devices that missed the last verdict."""
    finished_tokens: int = 1 << 21
    """Tokens of those sessions, at about 40 bytes each, log-probabilities included."""
    finished_device_share: float = 0.25
    """Share of both that one key may take, or one connection without keys."""


@dataclass(frozen=True)
class EvictionPolicy:
    """When the cloud takes KV-cache slots away, and what it keeps for later sessions."""

    patience_s: float = 1.0
    """Time that a session waits for memory before it takes the slot of a running session."""
    turn_s: float = 2.0
    """Time that a running session decodes, at least, before it can lose its slot to another."""
    idle_s: float = 1.0
    """Time without a draft after which a session can lose its slot; longer than a round trip."""
    gone_s: float = 5.0
    """Silence after which a device counts as gone; it sends a Ping every second."""
    kept_entries: int = 512
    """Slots of ended sessions that are kept for sessions with the same prefix."""
    least_shared_tokens: int = 8
    """Length of the shortest shared prefix that is copied."""


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
    cached_answers: int = 4
    """Answers of one client whose branches keep KV-cache slots of the draft. More may be written at
    once, and then read their text again."""
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
class LivePolicy:
    """What `/v1/edgespec/live` sends to those who watch a device."""

    watchers: int = 8
    """Clients that may watch at once; a further one ends the stream of the oldest."""
    tick_s: float = 0.1
    """Shortest time between two events."""
    heartbeat_s: float = 1.0
    """Longest time between two events."""
    kept_spans: int = 2000
    """Spans that wait for the next event; the oldest are dropped."""


@dataclass(frozen=True)
class ApiPolicy:
    """How `edgespec serve` treats its clients."""

    tokenizing_threads: int = 2
    """Threads in which prompts are rendered and tokenized; further ones wait."""
    connections: int = 512
    """Connections at once; a further one ends the oldest without a request."""
    spare_files: int = 192
    """File descriptors that connections leave to the rest of the process."""
    accepted_at_once: int = 64
    """Connections that are taken before the oldest can be ended, and that the kernel keeps."""
    header_s: float = 10.0
    """Time within which a new connection must have sent the header of a request."""
    idle_s: float = 15.0
    """The same after the reply to an earlier request."""
    body_s: float = 60.0
    """Time within which a body must have arrived."""


@dataclass(frozen=True)
class GrammarLimits:
    """Bounds of one answer's grammar, in a process of its own, on the device and in the cloud."""

    compile_s: float = 2.0
    """CPU time in which a grammar must be compiled."""
    mask_s: float = 0.25
    """CPU time of one mask."""
    mean_mask_s: float = 0.01
    """CPU time of a mask, on average over an answer; 0.1 to 1 ms are usual."""
    burst_s: float = 1.0
    """CPU time of an answer's masks beyond that."""
    reply_s: float = 5.0
    """Time after which an answer whose mask has not come ends; longer than `mask_s`, since the
    machine may be busy."""
    step_wait_s: float = 0.002
    """Time that a step of a cloud waits for masks, of all its sessions together; and that a device
    waits for one before it goes on with other answers."""
    memory_bytes: int = 128 << 20
    """Memory beyond that of the tokenizer."""
    lexer_states: int = 50_000
    """States of llguidance's lexer, at 1 to 2 kB."""
    poll_s: float = 0.005
    """Interval at which both sides look whether a grammar is compiled, or a mask has come."""
    processes: int = 64
    """Processes for answers at once; further ones are asked to try again later."""
    device_share: float = 0.25
    """Part of them that one device of a cloud may have."""
    penalty_s: float = 30.0
    """Time for which a cloud refuses further grammars of a device after one that took too long."""
    niceness: int = 10
    """Added to that of the processes."""


@dataclass(frozen=True)
class StatusPolicy:
    """How `edgespec top` reads the status port of a cloud."""

    reply_s: float = 5.0
    """Time within which the reply must be complete, its headers included."""
    reply_bytes: int = 16 << 20
    """Bytes of the longest reply, its headers included."""


@dataclass(frozen=True)
class LinkLimits:
    """Bounds of queues, packets and silence on a link."""

    device_queue_packets: int = 10_000
    """Packets that a device keeps for a cloud that does not take them."""
    send_queue_packets: int = 1000
    """Packets that wait in the cloud for one device; beyond that the device counts as not reading.
    """
    receive_queue_packets: int = 128
    """Packets of one device that the cloud's socket takes in advance; beyond that TCP slows the
    device down."""
    poll_packets: int = 64
    """Packets of one device after which the cloud stops reading and runs its next step. ZeroMQ
    takes turns between devices, so each of the others has been read as often, or is empty."""
    poll_total_packets: int = 10_000
    """Packets that either side reads from all connections before it runs its next step."""
    poll_s: float = 0.05
    """Time after which the cloud stops reading and runs its next step."""
    probe_s: float = 2.0
    """Interval at which the kernel probes a silent connection; whole seconds."""
    vanished_s: float = 10.0
    """Time without any sign of life after which a connection is closed."""
    linger_s: float = 0.5
    """Time that closing a socket leaves to packets that are not sent yet."""
    ping_interval_s: float = 1.0
    """Interval at which a device with an answer measures the round trip; a Ping also tells the
    cloud that the device is there."""
    stall_s: float = 1.0
    """Shortest silence of a link that a device reports."""
    shortest_retry_s: float = 0.1
    """Shortest time after which a device opens a refused session again."""
    longest_retry_s: float = 10.0
    """Longest time that a cloud may ask a device to wait before that."""
    retry_spread: float = 0.5
    """Random part of that time, either way, so that the devices of a cloud that went down do not
    all return at once."""
    shortest_reconnect_s: float = 0.02
    """Pause of a device between losing a connection and the first attempt to connect again. It
    doubles with each attempt."""
    longest_reconnect_s: float = 0.06
    """Longest pause of a device between two attempts to connect, up to `shortest_reconnect_s` of
    jitter apart. A failed attempt costs one packet each way."""
    connect_attempt_s: float = 2.0
    """Time after which an attempt to connect that gets no reply is made anew."""
    connections: int = 4096
    """Connections of a cloud; fewer where its file descriptors do not suffice."""
    connections_per_key: int = 16
    """Connections of one device key after their Hello; beyond that the oldest is cut."""
    hello_timeout_s: float = 10.0
    """Time within which a new connection must have sent a valid Hello."""
    hello_bytes: int = 4096
    """Bytes of a connection that may wait before its Hello is read."""
    backlog_bytes: int = 1 << 18
    """Bytes of a connection, beyond one packet of the largest size, that may wait to be read."""
    total_backlog_bytes: int = 16 << 20
    """Bytes of all connections that may wait to be read."""
    total_left_bytes: int = 8 << 20
    """Bytes that closed connections may have left to be read; beyond that no new ones are taken."""
    listen_backlog: int = 4096
    """Connections that the kernel keeps until they are taken; its own limit is `somaxconn`."""
    unread_bytes: int = 1 << 20
    """Bytes that the cloud sends to a device beyond those that the device's machine has taken."""
    total_unread_bytes: int = 256 << 20
    """The same for all connections, in equal shares."""
    guard_interval_s: float = 0.01
    """Interval at which connections are compared with these bounds."""
    guard_cpu_share: float = 0.1
    """Largest part of the time spent comparing; with many connections the interval grows."""
    known_devices: int = 4096
    """Connections that the cloud remembers after their Hello, and as many before it. A forgotten
    device must send its Hello again."""
    packets_per_s: float = 1000.0
    """Packets that the cloud takes from one device per second. A streaming device sends about 500.
    """
    burst_packets: float = 1000.0
    """Packets that the cloud takes at once from a device that has paused."""
    bytes_per_s: float = 1 << 20
    """Bytes of packets that the cloud takes from one device per second. The tokens that a Resume
    or a repeated Open asks for count too, at four bytes each."""
    burst_bytes: float = 8 << 20
    """Bytes that the cloud takes at once from a device that has paused; at least `MAX_PACKET`."""
    repeat_s: float = 60.0
    """Time between two log lines about the same trouble with the same device."""
