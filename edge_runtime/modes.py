"""Whether the device drafts, decided from measured times with hysteresis. Pure.

A mode says what drafts for a session: `edge`, the device; `cloud-draft`, a draft model of the
cloud; `cloud`, nothing. In `auto` the cloud may always draft where nothing better has come (it
knows its own times), and this module decides whether the device drafts too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge_runtime.measurements import LONGEST_STEP_S, Measurements
from edge_runtime.policy import DraftTimings
from edgespec.confidence import EXPECTED_ACCEPTANCE
from edgespec.config import EdgeSettings
from edgespec.protocol import Terms, Verdict, Welcome

_TO_MEASURE = "to measure the cloud without drafts of the device"


@dataclass
class _Trial:
    """Figures since the mode changed or the last judgement was made."""

    tokens: int = 0
    accepted: int = 0
    """Number of `tokens` that the device drafted."""
    timed_tokens: int = 0
    """Number of `tokens` whose time is known."""
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Share of the tokens that the device drafted."""
        return self.accepted / self.tokens

    @property
    def rate(self) -> float:
        """Tokens per second; 0 if nothing was timed."""
        return self.timed_tokens / self.seconds if self.seconds > 0 else 0.0


class Modes:
    """The terms that the device asks the cloud for."""

    def __init__(
        self,
        settings: EdgeSettings,
        welcome: Welcome,
        *,
        drafts: bool,
        batch: int = 1,
        acceptance: float = EXPECTED_ACCEPTANCE,
    ) -> None:
        """`drafts`: the device has a drafter; `batch`: number of paths in one draft step;
        `acceptance`: rate to expect before any verdict."""
        self._policy = settings.modes
        self.measurements = Measurements(0.0, batch, self._policy, acceptance)
        self.mean_batch_rows = 0.0
        """Mean number of sessions in a step of the cloud."""
        self.reason = "asked for" if settings.mode != "auto" else "to begin with"
        """Why the current mode was chosen."""
        self._mode = settings.mode
        self._tactics = settings.tactics
        self._target_rate = settings.target_rate
        self._drafts = drafts
        self._drafting = drafts and settings.mode in ("auto", "edge")
        self._trial = _Trial()
        self._resting_tokens = 0
        """Tokens committed since the mode changed."""
        self._rest_tokens = self._next_rest_tokens = self._policy.pause_tokens
        """Tokens until the next try, and until the one after that if it fails."""
        self._resting_rate = 0.0
        """Tokens per second without drafting; the cloud's own figure until it is measured."""
        self._resting_measured = False
        """True once that rate is measured."""
        self.adapt(welcome)

    def adapt(self, welcome: Welcome) -> None:
        """Takes over what a cloud says of itself, in place of the cloud before."""
        self._welcome = welcome
        self.measurements.step = welcome.step_ms / 1e3
        self._resting_rate = 1e3 / max(welcome.step_ms, 1e-3)
        self._resting_measured = False

    @property
    def terms(self) -> Terms:
        tactics = self._tactics
        lockstep = tactics.lockstep
        if lockstep is None:
            lockstep = not tactics.streaming
        hints = tactics.hints
        if hints is None:
            most_ms = self._policy.cheap_hint_step_share * self._welcome.step_ms
            cheap = self._welcome.hint_ms <= most_ms
            hints = tactics.pre_draft == "exits" or (tactics.streaming and cheap)
        return Terms(
            drafting=self._drafting,
            cloud_draft=self._cloud_draft,
            decoding=not (self._drafting and lockstep),
            hints=bool(self._drafting and hints and self._welcome.exits),
            target_rate=self._target_rate,
        )

    @property
    def _cloud_draft(self) -> bool:
        """True if the cloud has a draft and may use it."""
        return self._mode in ("auto", "cloud-draft") and self._welcome.draft_ms > 0

    @property
    def shared(self) -> bool:
        """True if the cloud's steps serve several sessions."""
        return self.mean_batch_rows > self._policy.unshared_batch_rows

    @property
    def name(self) -> str:
        """The mode in which answers are written now."""
        if self._drafting:
            cloud_draft = self._cloud_draft
            return "edge, with cloud-draft where nothing has come" if cloud_draft else "edge"
        return "cloud-draft" if self._cloud_draft else "cloud"

    @property
    def trial_tokens(self) -> int:
        """Tokens after which drafting is judged; more for a distant cloud, where it pays later."""
        shortest = self._policy.trial_tokens
        return shortest + int(min(3 * self.measurements.timings.lead, 3 * shortest))

    @property
    def figures(self) -> str:
        """The measured times as a sentence for the user."""
        timings = self.measurements.timings
        figures = [
            f"round trip {1e3 * timings.round_trip:.1f} ms",
            f"target step {1e3 * timings.step:.1f} ms",
        ]
        if self._welcome.draft_ms:
            figures.append(f"cloud draft step {self._welcome.draft_ms:.1f} ms")
        if timings.draft:
            figures.append(f"draft step {1e3 * timings.draft:.1f} ms")
            figures.append(f"acceptance rate {timings.acceptance:.2f}")
        return ", ".join(figures)

    def begin(self) -> None:
        """Decides whether to draft from the first token on. Call it once the round trip is known.

        Where drafting is doubtful and the cloud drafts too, the cloud's rate is measured first.
        """
        doubtful = (
            self.measurements.timings.overtaking < self._policy.doubtful_overtaking_probability
        )
        if self._drafting and self._cloud_draft and self._tactics.streaming and doubtful:
            self._drafting = False
            self._rest(_TO_MEASURE)
            self.reason = _TO_MEASURE

    def verdict(self, verdict: Verdict, fresh: int, seconds: float = 0.0) -> None:
        """Counts the `fresh` tokens that a verdict has committed, `seconds` after the last verdict
        of the same session (0: it is the first)."""
        if 0 < seconds < LONGEST_STEP_S:
            self._trial.timed_tokens += fresh
            self._trial.seconds += seconds
        self._trial.tokens += fresh
        self._trial.accepted += min(verdict.accepted, fresh)
        self._resting_tokens += fresh

    def reconsider(self) -> bool:
        """Starts or stops drafting if the figures ask for it. True if the mode has changed;
        `reason` then says why."""
        if not (self._drafts and self._mode in ("auto", "edge") and self._tactics.streaming):
            return False
        timings = self.measurements.timings
        reason = self._reason_to_stop(timings) if self._drafting else self._reason_to_try(timings)
        if not reason:
            return False
        if self._drafting:
            self._rest(reason)
        else:
            self.measurements.estimate.forget()
            if timings.draft >= timings.step:
                self.measurements.forget_draft_steps()
        self._drafting = not self._drafting
        self.reason = f"{reason}; {self.figures}"
        self._trial = _Trial()
        self._resting_tokens = 0
        return True

    def _rest(self, reason: str) -> None:
        """Sets the length of the pause: a short one if it is to measure the cloud's own rate."""
        if reason == _TO_MEASURE:
            self._rest_tokens = self._policy.first_look_tokens
            return
        self._rest_tokens = self._next_rest_tokens
        longest = self._policy.longest_pause_tokens
        self._next_rest_tokens = min(2 * self._next_rest_tokens, longest)

    def _reason_to_try(self, timings: DraftTimings) -> str:
        """Why to start drafting; empty: not yet. The acceptance rate is assumed to be good, since
        the text has changed since it was measured, and a draft step that took longer than the
        target's is measured anew, since another program may have had the core."""
        policy = self._policy
        acceptance = max(timings.acceptance, policy.hoped_acceptance)
        draft = timings.draft if timings.draft < timings.step else 0.0
        overtaking = replace(timings, acceptance=acceptance, draft=draft).overtaking
        rested = self._resting_tokens >= self._rest_tokens
        if not rested or overtaking < policy.start_overtaking_probability:
            return ""
        if self._trial.rate:
            self._resting_rate, self._resting_measured = self._trial.rate, True
        return "another try"

    def _reason_to_stop(self, timings: DraftTimings) -> str:
        """Why to stop drafting; empty: there is no reason, or the trial is not over."""
        policy, trial = self._policy, self._trial
        if trial.tokens < self.trial_tokens:
            return ""
        self._trial = _Trial()
        overtaking = timings.overtaking
        if overtaking < policy.stop_overtaking_probability:
            return f"a draft overtakes the cloud with probability {overtaking:.3f}"
        unlikely = overtaking < policy.patient_overtaking_probability
        if unlikely and trial.share < policy.least_token_share:
            return f"of the last {trial.tokens} tokens {trial.share:.0%} were the device's"
        least = self._resting_rate * (1.0 if self._resting_measured else policy.least_rate_ratio)
        if 0 < trial.rate < least and not self.shared:
            if not self._resting_measured:
                return _TO_MEASURE
            return f"{trial.rate:.1f} tokens/s with it, {self._resting_rate:.1f} without"
        self._next_rest_tokens = policy.pause_tokens
        return ""
