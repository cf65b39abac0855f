"""The draft steps of a device's loop: which paths they extend, and when drafts are sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from edge_runtime.answer import Answer
from edge_runtime.handshake import Clock
from edge_runtime.modes import Modes
from edge_runtime.observer import Observer
from edge_runtime.policy import Choice, best_together
from edge_runtime.tree import DraftedPath
from edgespec.config import EdgeSettings
from edgespec.errors import LinkError
from edgespec.protocol import Draft, Message
from engines.drafters.base import Drafter, DraftRequest


class Drafting:
    """One drafter for all answers of a loop, whose steps share batches."""

    def __init__(
        self,
        drafter: Drafter,
        modes: Modes,
        settings: EdgeSettings,
        send: Callable[[Message], None],
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._drafter = drafter
        self._modes = modes
        self._settings = settings
        self._send = send
        self._observer = observer
        self._clock = clock

    def turn(self, answers: Collection[Answer]) -> bool:
        """Makes one draft step and sends what is due. True if there may be another step."""
        began = self._clock()
        offline = [answer for answer in answers if answer.offline and not answer.compiling]
        if offline:
            self._write_offline(offline)
            for answer in offline:
                answer.stats.drafting_seconds += self._clock() - began
        timings = self._modes.measurements.timings
        offers = {
            answer: answer.choices(timings)
            for answer in answers
            if not answer.deferral.waiting and answer not in offline
        }
        step = best_together(
            ((answer, choice) for answer, choices in offers.items() for choice in choices),
            timings.together,
            lambda offer: offer[1].worth,
        )
        if step:
            seconds = self._step(step, began)
            for answer in answers:
                answer.stats.drafting_seconds += seconds
        for answer, choices in offers.items():
            answer.timing.idle = not choices and not answer.awaits_mask
            self._send_due(answer, began)
        return bool(step or offline)

    def _write_offline(self, answers: Sequence[Answer]) -> None:
        """One token of the draft model for each answer, handed out as unverified."""
        requests = [
            DraftRequest(
                answer.session_id,
                [*answer.state.tokens, *answer.unverified.tokens],
                answer.request.sampling,
                answer.adjustments,
            )
            for answer in answers
        ]
        guesses = self._drafter.guess(requests)
        for answer, request, guess in zip(answers, requests, guesses, strict=True):
            answer.timing.idle = True
            if guess is not None and answer.allows(request.tokens, guess.token):
                answer.add_unverified(guess, self._clock())
                continue
            written = len(answer.state.answer), len(answer.unverified)
            answer.error = LinkError(
                "the cloud is lost and the draft cannot go on alone; the answer stands at "
                "{} tokens, with {} unverified ones after them".format(*written),
                retryable=True,
            )

    def _step(self, step: Sequence[tuple[Answer, Choice]], began: float) -> float:
        """Extends the chosen paths. Returns the seconds that it took."""
        paths = [(answer, answer.path_of(choice)) for answer, choice in step]
        guessed = [(answer, path) for answer, path in paths if not answer.grow_free(path)]
        self._guess(guessed)
        now = self._clock()
        answers = list(dict.fromkeys(answer for answer, _ in guessed))
        # A step in which the drafter reads a prompt says nothing about the steps after it.
        if answers and all(answer.timing.prompt_read for answer in answers):
            self._modes.measurements.add_draft_step(now - began, len(guessed))
        for answer in answers:
            answer.timing.prompt_read = True
        for answer, path in paths if self._observer.tracing else ():
            self._observer.note("draft", answer, began, now, round=path.round, base=len(path.ahead))
        return now - began

    def _guess(self, paths: Sequence[tuple[Answer, DraftedPath]]) -> None:
        requests = [
            DraftRequest(
                answer.session_id,
                answer.tree.tokens(path),
                answer.request.sampling,
                answer.adjustments,
            )
            for answer, path in paths
        ]
        guesses = self._drafter.guess(requests) if requests else []
        for (answer, path), request, guess in zip(paths, requests, guesses, strict=True):
            legal = guess is not None and answer.allows(request.tokens, guess.token)
            answer.tree.grow(path, guess if legal else None)

    def _send_due(self, answer: Answer, began: float) -> None:
        """Sends drafted tokens that are enough for a packet, or have waited long enough."""
        idle, policy = answer.timing.idle, self._settings.drafting
        pending = answer.pending(idle=idle)
        if not pending:
            return
        since = answer.timing.unsent_since = answer.timing.unsent_since or began
        if idle or pending >= policy.pack_tokens or self._clock() - since >= self._pack_s:
            answer.timing.unsent_since = None
            for packet in answer.packets():
                self._send_draft(answer, packet)

    @property
    def _pack_s(self) -> float:
        """Seconds that drafted tokens wait for more to share their packet."""
        policy = self._settings.drafting
        step = self._modes.measurements.step if self._modes.shared else 0.0
        return max(policy.pack_s, policy.shared_pack_step_share * step)

    def _send_draft(self, answer: Answer, packet: Draft) -> None:
        self._send(packet)
        now = self._clock()
        self._observer.note(
            "send", answer, now, now, round=packet.round, base=packet.base,
            tokens=len(packet.tokens),
        )  # fmt: skip
