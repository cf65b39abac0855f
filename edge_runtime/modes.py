"""Who drafts, and why: chosen from measured times, with hysteresis, and able to say so. Pure.

Modes are what a session gets: `edge`, the device drafts; `cloud-draft`, the cloud drafts beside its
target; `cloud`, nobody does. `auto` lets the cloud draft wherever nothing better has come (it knows
its own times), and decides whether the device drafts as well.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field, replace

from edge_runtime.policy import DraftTimings
from edgespec.confidence import AcceptanceEstimate
from edgespec.config import EdgeSettings
from edgespec.protocol import Terms, Verdict, Welcome

ON, OFF = 0.05, 0.025
"""Chance of overtaking the cloud at which the device begins to draft, and below which it stops."""
LEAST_SHARE, PROMISE = 0.02, 0.3
"""Share of the tokens that the device must have drafted, lest it stop; unless it is so likely to
overtake the cloud, which far away takes longer than the trial."""
HOPE = 0.8
"""Agreement that a device which rests hopes for, when it weighs another try."""
SLOWER = 0.95
"""Of the rate that the cloud promised, below which the device stops: both may share a machine. Of a
rate that was measured without its drafts it must reach all."""
DOUBT, LOOK = 0.5, 48
"""Chance of overtaking below which a device first looks, for so many tokens, how fast a cloud that
drafts by itself is."""
ALONE = 1.5
"""Sessions a step up to which a cloud serves as good as one."""
TRIAL = 64
"""Tokens over which that share is measured, at least."""
PAUSE = 256
"""Tokens after which a device that stopped tries again; doubled each time that it stops again."""
LONGEST_PAUSE = 4096
CHEAP = 0.03
"""Share of a target step that exit heads may cost to be asked for unasked."""
SMOOTH = 0.2
MORE = 0.4
"""Of a draft step, what each further path adds, until that is measured."""


@dataclass
class Measurements:
    """What the device measures, over all its answers. Times in seconds."""

    step: float
    """Of a token that the cloud writes by itself."""
    batch: int = 1
    """Paths that a draft step may make longer."""
    drafts: dict[int, deque[float]] = field(default_factory=dict)
    """The last draft steps, by number of paths."""
    trips: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    """The last round trips."""
    estimate: AcceptanceEstimate = field(default_factory=AcceptanceEstimate)

    @property
    def pace(self) -> DraftTimings:
        # The shortest trip: others met a step that was running. The median draft step: some wait
        # for a core.
        steps = {count: statistics.median(times) for count, times in self.drafts.items()}
        alone = steps.get(1, 0.0)
        together = [
            max(1.0, steps[count] / alone) if alone and count in steps else 1 + MORE * (count - 1)
            for count in range(1, self.batch + 1)
        ]
        return DraftTimings(
            min(self.trips, default=0.0),
            self.step,
            alone,
            self.estimate.acceptance,
            tuple(together),
        )

    def tripped(self, seconds: float) -> None:
        if 0 <= seconds < 60.0:  # a clock that jumped
            self.trips.append(seconds)

    def drafted(self, seconds: float, paths: int) -> None:
        if 0 <= seconds < 10.0:
            self.drafts.setdefault(paths, deque(maxlen=15)).append(seconds)

    def stepped(self, seconds: float, tokens: int) -> None:
        """A verdict came so long after the one before, with `tokens` that are not ours."""
        if 0 <= seconds < 10.0:
            self.step += SMOOTH * (seconds / tokens - self.step)


class Modes:
    """The terms that the device wants, from what it measures."""

    def __init__(
        self, settings: EdgeSettings, welcome: Welcome, *, drafts: bool, batch: int = 1
    ) -> None:
        """`drafts`: whether the device has anything to draft with; `batch`: for how many paths in
        one step."""
        self.meter = Measurements(step=welcome.step_ms / 1e3, batch=batch)
        self._mode = settings.mode
        self._tactics = settings.tactics
        self._welcome = welcome
        self._target_rate = settings.target_rate
        self._drafts = drafts
        self._on = drafts and settings.mode in ("auto", "edge")
        self._tokens = self._won = 0
        self._pause = self._rest = PAUSE
        self._resting = 0
        self._timed = (0, 0.0)
        """Tokens and seconds since the mode last changed, or the last trial ended."""
        self._alone = 1e3 / max(welcome.step_ms, 1e-3)
        """Tokens a second while the device rests; what the cloud says until that is measured."""
        self.mean_batch_rows = 0.0
        """Sessions that share a step of the cloud. Among others rates say little: a device that
        stops drafting would slow itself down."""
        self._least = SLOWER
        self.reason = "asked for" if settings.mode != "auto" else "to begin with"

    @property
    def terms(self) -> Terms:
        tactics = self._tactics
        waits = tactics.lockstep
        if waits is None:
            waits = not tactics.streaming
        hints = tactics.hints
        if hints is None:
            cheap = self._welcome.hint_ms <= CHEAP * self._welcome.step_ms
            hints = tactics.pre_draft == "exits" or (tactics.streaming and cheap)
        return Terms(
            drafting=self._on,
            cloud_draft=self._cloud_draft,
            decoding=not (self._on and waits),
            hints=bool(self._on and hints and self._welcome.exits),
            target_rate=self._target_rate,
        )

    @property
    def _cloud_draft(self) -> bool:
        """Whether the cloud may draft, and can."""
        return self._mode in ("auto", "cloud-draft") and self._welcome.draft_ms > 0

    @property
    def shared(self) -> bool:
        return self.mean_batch_rows > ALONE

    @property
    def name(self) -> str:
        """The mode in which answers are written now."""
        if self._on:
            return "edge, with cloud-draft where nothing has come" if self._cloud_draft else "edge"
        return "cloud-draft" if self._cloud_draft else "cloud"

    def begin(self) -> None:
        """The round trip is known: whether to draft from the first token on."""
        if (
            self._on
            and self._cloud_draft
            and self._tactics.streaming
            and self.meter.pace.overtaking < DOUBT
        ):
            self._on, self._rest = False, LOOK
            self.reason = "to see how fast the cloud is by itself"

    def verdict(self, verdict: Verdict, fresh: int, seconds: float = 0.0) -> None:
        """Counts `fresh` committed tokens, and those of them that the device had drafted. It came
        `seconds` after the verdict before it; 0: it is the first of an answer."""
        if 0 < seconds < 10.0:
            self._timed = self._timed[0] + fresh, self._timed[1] + seconds
        self._tokens += fresh
        self._resting += fresh
        self._won += min(verdict.accepted, fresh)

    def reconsider(self) -> bool:
        """Whether the mode has changed; `reason` then says why."""
        if self._mode not in ("auto", "edge") or not (self._drafts and self._tactics.streaming):
            return False
        pace = self.meter.pace
        if not self._on:
            # What it was before says little: the text has gone on.
            hoped = replace(pace, acceptance=max(pace.acceptance, HOPE)).overtaking
            if self._resting < self._rest or hoped < ON:
                return False
            if self._rate:
                self._alone, self._least = self._rate, 1.0
            self.meter.estimate.forget()
            return self._turn(on=True, reason=f"another try; {self.figures}")
        if self._tokens < self.trial:
            return False
        tokens, share, rate = self._tokens, self._won / self._tokens, self._rate
        self._tokens, self._won, self._timed = 0, 0, (0, 0.0)
        if pace.overtaking < OFF:
            reason = f"a draft overtakes the cloud with probability {pace.overtaking:.3f}"
        elif share < LEAST_SHARE and pace.overtaking < PROMISE:
            reason = f"of the last {tokens} tokens {share:.0%} were the device's"
        elif not self.shared and rate and rate < self._least * self._alone:
            reason = f"{rate:.1f} tokens/s with it, {self._alone:.1f} without"
        else:
            self._pause = PAUSE
            return False
        self._rest, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return self._turn(on=False, reason=f"{reason}; {self.figures}")

    @property
    def figures(self) -> str:
        """The measured times, for people."""
        pace = self.meter.pace
        said = [f"round trip {1e3 * pace.round_trip:.1f} ms, target step {1e3 * pace.step:.1f} ms"]
        if self._welcome.draft_ms:
            said.append(f"a draft step beside it {self._welcome.draft_ms:.1f} ms")
        if pace.draft:
            said.append(f"draft step {1e3 * pace.draft:.1f} ms, agreement {pace.acceptance:.2f}")
        return ", ".join(said)

    @property
    def trial(self) -> int:
        """Tokens after which the device's drafts are judged; far away they take their time."""
        return TRIAL + int(min(3 * self.meter.pace.lead, 3 * TRIAL))

    @property
    def _rate(self) -> float:
        """Tokens a second; 0 where nothing was timed."""
        tokens, seconds = self._timed
        return tokens / seconds if seconds > 0 else 0.0

    def _turn(self, *, on: bool, reason: str) -> bool:
        self._on, self.reason = on, reason
        self._tokens = self._won = self._resting = 0
        self._timed = (0, 0.0)
        return True
