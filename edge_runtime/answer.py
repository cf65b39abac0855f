"""One answer on the device: committed tokens, drafted tokens, and what the cloud knows of both.

Pure: no socket, no clock, no model. The loop passes in messages and times and sends what the
methods return. A message that is stale, repeated or about another session changes nothing.
"""

from __future__ import annotations

import random
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge_runtime.deferral import Deferral
from edge_runtime.handshake import refusal
from edge_runtime.pieces import News, Piece
from edge_runtime.policy import Choice, DraftTimings, choices
from edge_runtime.prediction import Prediction
from edge_runtime.tree import DraftedPath, Hit, Tree
from edge_runtime.unverified import UnverifiedTail
from edgespec.adjustments import adjustments_of
from edgespec.confidence import AcceptanceEstimate
from edgespec.config import EdgeSettings, Request
from edgespec.errors import EdgespecError, LinkError, UsageError
from edgespec.grammars import GrammarMask, wait_for_any
from edgespec.logprobs import TokenLogprobs, read
from edgespec.protocol import (
    MAX_DRAFT,
    SECRET_BYTES,
    Close,
    Draft,
    Error,
    Hint,
    Open,
    Resume,
    Serve,
    Terms,
    Verdict,
    Welcome,
)
from edgespec.sampling import agreeing
from edgespec.session import Session
from edgespec.telemetry import AnswerStats, HintCount
from edgespec.text import TextStream
from engines.drafters.base import Guess


@dataclass
class AnswerContext:
    """State that all answers of one loop share. The loop writes it."""

    settings: EdgeSettings
    welcome: Welcome
    """From the cloud that welcomed this device last."""
    estimate: AcceptanceEstimate
    end_ids: Sequence[int] = ()
    exit_agreements: Mapping[int, float] = field(default_factory=dict)
    """Probability that an exit head names the target's token, by layer."""


@dataclass
class AnswerTiming:
    """Times of one answer, by the loop's clock, in seconds. The loop writes them."""

    began: float = 0.0
    last_verdict: float = 0.0
    """0: no verdict has come yet."""
    unsent_since: float | None = None
    """When the oldest drafted token that was not sent was drafted."""
    unheard: float = 0.0
    """Time since the last message of this session."""
    silence: float = 0.0
    """Time since the last message of this session while there was nothing to draft."""
    idle: bool = True
    """True if the last turn had nothing to draft for this answer."""
    prompt_read: bool = False
    """True once the drafter has read the prompt."""
    bytes_up: int = 0
    """Bytes of the link before this answer."""
    bytes_down: int = 0


class Answer:
    """One session: its committed tokens, the tree drafted beyond them, and what the cloud has."""

    def __init__(
        self,
        session: int,
        request: Request,
        context: AnswerContext,
        terms: Terms,
        text: TextStream | None = None,
        grammar: GrammarMask | None = None,
    ) -> None:
        """`text` turns tokens into text and finds stop strings; without it pieces have no text.
        `grammar` is the request's, for this answer's drafts.

        Raises `UsageError` for a prompt that the target's context cannot hold.
        """
        length = len(request.prompt)
        if not length:
            raise UsageError("the prompt is empty; give at least one token of text")
        self.session_id = session
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self.request = request
        self.grammar = grammar
        self._awaits_mask = False
        self.adjustments = adjustments_of(
            request.sampling, request.prompt, [] if grammar is None else [grammar]
        )
        self.terms = terms
        self.prediction = (
            Prediction(request.prompt, request.prediction) if request.prediction else None
        )
        self.stats = AnswerStats(
            prompt_tokens=length,
            restored=len(request.committed),
            prediction_tokens=len(request.prediction),
        )
        self.timing = AnswerTiming()
        self.deferral = Deferral(
            context.settings.give_up, random.Random(session), context.settings.limits
        )
        self.error: EdgespecError | None = None
        """Why the answer cannot go on."""
        self.unread: deque[Piece] = deque()
        """Committed pieces that the reader has not taken."""
        self.state = Session(
            [*request.prompt, *request.committed],
            length,
            request.max_tokens,
            frozenset(context.end_ids),
        )
        self._context, self._policy = context, context.settings.drafting
        self.tree = Tree(self.state.tokens, context.estimate, self._policy)
        self._text = text
        self._tactics = context.settings.tactics
        self._exit_agreements = context.exit_agreements
        self._hints: dict[int, list[int]] = {}
        self._outstanding: Draft | None = None
        """The last draft sent since the last verdict."""
        self.unverified = UnverifiedTail()
        """Tokens after the committed ones that were handed out while the cloud was lost."""
        self._final_chars = 0
        """Characters of the committed text."""
        self._resuming = False
        """True while the reply to a Resume is awaited."""
        self._begun = False
        """True once the session was opened."""
        self._interrupted = False
        """True while nothing was heard since the answer was last asked for again."""
        self._reopened_tokens = 0
        """Number of committed tokens when the session was last opened again without a pause."""
        self._adapt()
        self._restore()

    def _adapt(self) -> None:
        """Keeps the answer and its drafts within the limits of the cloud that writes it.

        Raises `UsageError` if its context cannot hold the prompt.
        """
        welcome, length = self._context.welcome, self.state.prompt_length
        if length >= welcome.context:
            raise UsageError(
                f"the prompt has {length} tokens and a session of this cloud at most "
                f"{welcome.context}; shorten the prompt"
            )
        self.state.limit(min(self.request.max_tokens, welcome.context - length))
        self._draft_length = min(self._context.settings.draft_length, welcome.max_draft)
        self._ahead = min(self._policy.ahead_tokens, welcome.max_draft)

    def _restore(self) -> None:
        """Hands out the tokens that were committed before this session began."""
        for token in self.state.answer:
            self.unread.append(Piece(token, self._final_text(token), "restored", 0.0))

    @property
    def done(self) -> bool:
        return bool(self.state.finish)

    @property
    def over(self) -> bool:
        """True if no further token will be committed."""
        return self.done or self.error is not None or bool(self.unverified.finish)

    @property
    def offline(self) -> bool:
        """True if the answer goes on without the cloud now."""
        settings = self._context.settings
        lost = self.timing.unheard >= settings.offline_after and not self.over
        return lost and settings.offline == "draft"

    def open(self, terms: Terms | None = None) -> Open:
        """The message that starts the session, or starts it again from the committed tokens.

        None: the terms stay. Raises `UsageError` if another cloud's context cannot hold the prompt.
        """
        self._adapt()
        self.terms = terms or self.terms
        self._interrupted, self._begun = self._begun, True
        self._forget()
        return Open(
            session=self.session_id,
            secret=self._secret,
            prompt_length=self.state.prompt_length,
            max_tokens=self.state.max_tokens,
            sampling=self.request.sampling,
            end_ids=sorted(self.state.end_ids),
            terms=self.terms,
            grammar=self.request.grammar,
            tokens=list(self.state.tokens),
            logprobs=self.request.logprobs,
        )

    def serve(self, terms: Terms) -> Serve:
        """The message that changes the terms from now on. Drafted tokens are dropped."""
        self._forget()
        self.terms = terms
        return Serve(self.session_id, self._secret, terms)

    def _forget(self) -> None:
        self._hints.clear()
        self._outstanding = None
        self.tree.restart()
        self._offer()

    @property
    def _most(self) -> int:
        """Tokens that a path may have. The last token that may be committed is the target's."""
        return min(self._ahead, self.state.remaining - 1)

    @property
    def compiling(self) -> bool:
        """True while the grammar is being compiled; nothing can be drafted then."""
        return self.grammar is not None and not self.grammar.ready

    @property
    def awaits_mask(self) -> bool:
        """True while a draft step waits for the grammar's mask."""
        return self._awaits_mask

    def grow_free(self, path: DraftedPath) -> bool:
        """Extends a path without a step of the draft. False: that is not possible."""
        return self._grow_forced(path) or self._grow_predicted(path)

    def _grow_predicted(self, path: DraftedPath) -> bool:
        """Extends a path by the token that the prediction has there, if it has one."""
        if self.prediction is None:
            return False
        tokens = self.tree.tokens(path)
        guess = self.prediction.guess(tokens, self.request.sampling)
        if guess is None or not self.allows(tokens, guess.token):
            return False
        self.tree.grow(path, guess)
        return True

    def _grow_forced(self, path: DraftedPath) -> bool:
        """Extends a path by the tokens that the grammar forces. False: it forces none."""
        if self.grammar is None or self.adjustments is None:
            return False
        self.adjustments.follow(self.tree.tokens(path))
        forced = self.grammar.forced()[: max(1, self._most - len(path.ahead))]
        for token in forced:
            self.tree.grow(path, Guess(token, 1.0))
        return bool(forced)

    def allows(self, tokens: Sequence[int], token: int) -> bool:
        """True if the grammar allows `token` after `tokens`, prompt first."""
        if self.grammar is None or self.adjustments is None:
            return True
        self.adjustments.follow(tokens)
        return self.grammar.allows(token)

    def _offer(self) -> None:
        """Extends the main path by the unverified tokens, which cost no draft step."""
        main, most = self.tree.main, self._most
        for guess in self.unverified.offered(main.ahead, most):
            self.tree.grow(main, guess)

    def choices(self, timings: DraftTimings) -> list[Choice]:
        """The draft steps that this answer could use now. Empty if none is worth its time, or if
        lockstep allows none."""
        self._awaits_mask = False
        if not self.terms.drafting or self.over or self.compiling:
            return []
        found = self._all_choices(timings)
        return found if self.grammar is None else self._with_mask(found, self.grammar)

    def _with_mask(self, found: Sequence[Choice], grammar: GrammarMask) -> list[Choice]:
        """The best choice, if the mask after its path is here; a slow one must not hold up other
        answers, so that it is waited for only when it was just asked for."""
        if not found:
            return []
        best = max(found, key=lambda choice: choice.worth)
        answer = self.tree.tokens_of(best.path, best.place)[len(self.request.prompt) :]
        here = grammar.prepare(answer)
        if not here and grammar.just_asked:
            wait_for_any([grammar], grammar.step_wait_s)
            here = grammar.prepare(answer)
        self._awaits_mask = not here
        return [best] if here else []

    def _all_choices(self, timings: DraftTimings) -> list[Choice]:
        most = self._most
        if not self._tactics.streaming:
            return self._lockstep_choices(min(most, self._draft_length))[:1]
        if self.terms.lockstep:  # the target waits, so it is never ahead of the device
            timings = replace(timings, round_trip=0.0)
        return choices(self.tree, timings, self._policy, most=most, branches=self._tactics.branches)

    def _lockstep_choices(self, most: int) -> list[Choice]:
        main = self.tree.main
        if self._outstanding is None:
            paths = [main]
        elif self._tactics.pre_draft == "exits":
            paths = [path for path in self.tree.paths if path.via == "hint"]
            most += len(main.ahead) + 1
        else:
            paths = []
        return [
            Choice(path.chance, path) for path in paths if not path.stuck and len(path.ahead) < most
        ]

    def path_of(self, choice: Choice) -> DraftedPath:
        """The path that a step extends; it is forked first where the choice says so."""
        if choice.place is None:
            return choice.path
        return self.tree.fork(choice.path, choice.place)

    def pending(self, *, idle: bool) -> int:
        """Number of drafted tokens that could be sent. `idle`: there is nothing more to draft.

        At least 1 where the target waits for a draft and has to be sent an empty one.
        """
        if not self.terms.drafting or self.over:
            return 0
        end = len(self.state.tokens)
        paths = self.tree.unsent()
        if not self._tactics.streaming:  # one full round at a time
            free = idle and self._outstanding is None
            paths = [path for path in paths if free and path is self.tree.main]
        unsent = sum(end + len(path.ahead) - path.sent for path in paths)
        return unsent or int(idle and self.terms.lockstep and self._outstanding is None)

    def packets(self) -> list[Draft]:
        """The drafted tokens that the cloud lacks; in lockstep one round, which may be empty."""
        paths = self.tree.unsent() if self._tactics.streaming else []
        packets = [self.tree.packet(self.session_id, path) for path in paths or [self.tree.main]]
        self._outstanding = packets[-1]
        self.stats.drafted += sum(len(packet.tokens) for packet in packets)
        return packets

    def on_hint(self, hint: Hint) -> None:
        if hint.session != self.session_id or hint.base != len(self.state.tokens):
            return
        if hint.layer not in self._context.welcome.exits:
            return
        self._hints[hint.layer] = hint.tokens
        if self.terms.hints and self._tactics.pre_draft != "none":
            right = self._exit_agreements.get(hint.layer, self._policy.hint_agreement)
            self.tree.hinted(hint.round, hint.base, hint.tokens, right)

    def on_verdict(self, verdict: Verdict) -> News:
        """Returns the tokens that a verdict adds, if any, without committing them."""
        base = len(self.state.tokens)
        if self.done or verdict.session != self.session_id or verdict.base > base:
            return News()
        self._resuming = False
        self.stats.resumed += self._interrupted
        self._interrupted = False
        skipped = base - verdict.base
        fresh = verdict.tokens[skipped:]
        if not fresh:
            return News()
        # The cloud's figures count as far as they are possible.
        unaccepted = max(0, self.stats.drafted - self.stats.accepted)
        accepted = min(max(0, verdict.accepted - skipped), len(fresh), unaccepted)
        confirmed = min(verdict.confirmed, len(verdict.tokens))
        if not skipped:
            self._count_hints(verdict)
        self.stats.rounds += 1
        self.stats.count_draft(min(verdict.verified, MAX_DRAFT), confirmed)
        self.stats.accepted += accepted
        logprobs: Sequence[TokenLogprobs | None] = ()
        if self.request.logprobs is not None:
            logprobs = read(verdict.logprobs, len(verdict.tokens))[skipped:]
        return News(fresh, accepted, max(accepted, confirmed - skipped), logprobs)

    def commit(self, news: News, now: float) -> list[Piece]:
        """Commits tokens one by one, since a stop string may end the answer among them.

        Call `settle` afterwards. Returns the pieces, which are also added to `unread`.
        """
        pieces = []
        for place, token in enumerate(news.tokens):
            if self.prediction and self.prediction.drafted(len(self.state.tokens), token):
                self.stats.predicted += news.origin(place) == "device"
            self.state.commit([token])
            stands = self._final_chars
            text = self._final_text(token)
            correction = None
            if self.unverified:
                if self.unverified.confirms(token):
                    text = ""  # it was handed out before
                else:
                    correction = stands
            logprobs = news.logprobs[place] if news.logprobs else None
            pieces.append(Piece(token, text, news.origin(place), now, correction, logprobs))
            if self.done:
                break
        self._count_first(now)
        self.stats.tokens += len(pieces)
        self.unread += pieces
        return pieces

    def add_unverified(self, guess: Guess, now: float) -> None:
        """Hands out a token of the device's draft that no target has verified."""
        text = self.unverified.add(guess, self.state, self._text)
        self.unread.append(Piece(guess.token, text, "unverified", now))
        self._count_first(now)

    def _count_first(self, now: float) -> None:
        if not self.stats.first_token_seconds:
            self.stats.first_token_seconds = now - self.timing.began

    def _final_text(self, token: int) -> str:
        """The text that a committed token makes final. A stop string in it ends the answer."""
        if self._text is None:
            return ""
        text = self._text.push(token)
        if self._text.stopped:
            self.state.finish = "stop"
        elif self.done:
            text += self._text.flush()
        self._final_chars += len(text)
        return text

    def flush_text(self) -> str:
        """Text that was held back because it might begin a stop string. Call it at the end."""
        if self.unverified:
            return self.unverified.flush()
        return self._text.flush() if self._text else ""

    def settle(self) -> Hit | None:
        """Cuts the tree after tokens were committed; returns what is left. None: not drafting."""
        drafting = self.terms.drafting and not self.done
        self._hints.clear()
        self._outstanding = None
        hit = self.tree.commit()
        self._offer()
        if not drafting:
            return None
        self.stats.hits[hit] = self.stats.hits.get(hit, 0) + 1
        return hit

    def missed(self, verdict: Verdict) -> bool:
        """True if the verdict begins after tokens that have not arrived."""
        return verdict.session == self.session_id and verdict.base > len(self.state.tokens)

    def deferred(self, error: Error) -> bool:
        """True if this session is to be opened later: the cloud is full or shuts down, or lacks the
        session again although no token has come since it was opened again."""
        if self.lost(error):
            return self._reopened_tokens == len(self.state.tokens)
        if error.session != self.session_id or error.code not in ("busy", "drained"):
            return False
        if error.retryable:
            self._forget()
        return error.retryable

    def lost(self, error: Error) -> bool:
        """True if the cloud does not have this session, or no longer."""
        return error.session == self.session_id and error.code in ("session", "hello")

    def on_error(self, error: Error, terms: Terms | None = None) -> Open | None:
        """The message to send after an error; None if the error is about another session.

        `terms` are those of a session that is opened again. Raises `LinkError` if nothing that
        could be sent would help.
        """
        if error.session not in (0, self.session_id):
            return None
        if self.lost(error):
            self._reopened_tokens = len(self.state.tokens)
            return self.open(terms)
        raise LinkError(
            f"the cloud refused: {refusal(error)}", code=error.code, retryable=error.retryable
        )

    def resume(self, *, silence: bool = False) -> Resume | None:
        """Asks for the tokens committed since the last verdict. None if that was asked already;
        after silence it is asked again, since the first request may be lost."""
        if self._resuming and not silence:
            return None
        self._resuming = self._interrupted = True
        return Resume(self.session_id, self._secret, len(self.state.tokens))

    def reconnected(self) -> Resume | None:
        """The message to send over a new connection. What was sent over the old one may be lost, so
        drafted tokens are sent again. None if the answer is over or waits to be opened."""
        if self.over or self.deferral.waiting:
            return None
        if self._tactics.streaming and not self.terms.lockstep:
            self.tree.resend()
            self._offer()
        return self.resume(silence=True)

    def stands(self, verdict: Verdict) -> None:
        """Handles a verdict that adds nothing: a reply to `resume`, or to an `open` of a session
        that the cloud still has. In lockstep it means that the last draft was lost, or built on a
        draft that was lost, so drafting starts again."""
        here = verdict.session == self.session_id and verdict.base == len(self.state.tokens)
        if here and self.terms.lockstep:
            self._forget()

    def close(self) -> Close:
        return Close(self.session_id, self._secret)

    def _count_hints(self, verdict: Verdict) -> None:
        for layer, tokens in self._hints.items():
            count = self.stats.hints.setdefault(layer, HintCount())
            count.total += min(len(tokens), len(verdict.tokens))
            count.right += agreeing(tokens, verdict.tokens)
