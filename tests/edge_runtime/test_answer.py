"""One answer on the device and the messages that it gets: new, missing and repeated ones."""

import msgspec
import pytest

from edge_runtime.answer import Answer, AnswerContext
from edge_runtime.measurements import Measurements
from edge_runtime.pieces import News
from edge_runtime.policy import best_together
from edgespec.confidence import AcceptanceEstimate
from edgespec.config import EdgeSettings, Request, Tactics
from edgespec.errors import LinkError, UsageError
from edgespec.protocol import (
    MAX_DRAFT,
    VERSION,
    Close,
    Error,
    Hint,
    Resume,
    Terms,
    Verdict,
    Welcome,
)
from engines.drafters.base import Guess

WELCOME = Welcome(VERSION, "t", "k", 40, 32, [1, 2], 30.0, 2.0, 0.0, 0.0)
STREAM, LOCKSTEP = Tactics(), Tactics("none")
PROMPT = (1, 2, 3)


def begin(terms=None, tactics=STREAM, prompt=PROMPT, most=20, exits=(), **settings):
    terms = terms or Terms(decoding=tactics.streaming)
    edge = EdgeSettings(tactics=tactics, **settings)
    context = AnswerContext(edge, WELCOME, AcceptanceEstimate(), [0], dict(exits))
    return Answer(9, Request(prompt, most), context, terms)


def steps(answer, measured=None):
    """The paths of the next draft step, as the loop takes them."""
    timings = (measured or Measurements(0.03)).timings
    best = best_together(answer.choices(timings), timings.together, lambda choice: choice.worth)
    return [answer.path_of(choice) for choice in best]


def draft(answer, *tokens):
    """One id a step, along the main path; the packets that are due then."""
    for token in tokens:
        path = answer.tree.main
        answer.tree.grow(path, Guess(token, 0.9))
    return answer.packets()


def verdict(base, *tokens, round_=0, verified=0, accepted=0, **more):
    return Verdict(9, round_, base, verified, accepted, accepted, list(tokens), **more)


def hear(answer, message):
    """Commits what a verdict brings, as the loop does."""
    news = answer.on_verdict(message)
    answer.commit(news, 0.0)
    hit = answer.settle() if news.tokens else None
    return news.accepted, list(news.tokens), hit


@pytest.mark.parametrize(
    ("prompt", "words"),
    [((), "prompt is empty"), ((1,) * 40, "a session of this cloud at most 40")],
)
def test_a_prompt_that_does_not_fit_is_refused(prompt, words):
    with pytest.raises(UsageError, match=words):
        begin(prompt=prompt)


def test_the_context_bounds_the_answer():
    assert begin(most=1000).open().max_tokens == 37


def test_a_verdict_brings_its_tokens_and_what_of_them_was_drafted_here():
    answer = begin()
    (packet,) = draft(answer, 20, 21, 22)
    assert (packet.round, packet.base, packet.tokens) == (1, 3, [20, 21, 22])
    message = verdict(3, 20, 21, round_=1, verified=2, accepted=2)
    assert hear(answer, message) == (2, [20, 21], "full")
    assert answer.tree.main.ahead == [22]
    assert hear(answer, verdict(5, 99)) == (0, [99], "miss")
    stats = answer.stats
    assert (stats.rounds, stats.drafted, stats.verified) == (2, 3, 2)
    assert (stats.confirmed, stats.accepted, stats.hits) == (2, 2, {"full": 1, "miss": 1})


@pytest.mark.parametrize(("decoding", "drafts"), [(True, False), (False, True)])
def test_a_slow_draft_is_of_use_to_a_cloud_that_waits_alone(decoding, drafts):
    """Far away, and slower than the target: it would never get ahead of one that goes on."""
    answer = begin(Terms(decoding=decoding))
    measured = Measurements(0.03)
    measured.add_trip(0.5)
    measured.add_draft_step(0.3, 1)
    assert bool(steps(answer, measured)) == drafts


@pytest.mark.parametrize(
    "message",
    [
        verdict(3, 20, 21),  # repeated
        verdict(4, 21),  # its end
        verdict(3),  # of no tokens
        msgspec.structs.replace(verdict(5, 22), session=8),  # another's
        verdict(6, 23),  # its forerunner is missing
    ],
)
def test_what_is_stale_repeated_or_anothers_changes_nothing(message):
    answer = begin()
    draft(answer, 20, 21, 22)
    hear(answer, verdict(3, 20, 21, round_=1, accepted=1))
    before = answer.stats.as_json()
    assert answer.on_verdict(message) == News()
    assert answer.state.tokens == [1, 2, 3, 20, 21]
    assert answer.tree.main.ahead == [22]
    assert answer.stats.as_json() == before


def test_a_verdict_that_overlaps_counts_only_what_is_new():
    answer = begin()
    draft(answer, 20, 21, 22)
    hear(answer, verdict(3, 20, 21))
    replay = verdict(3, 20, 21, 22, 23, round_=1, verified=3, accepted=3)
    assert hear(answer, replay)[:2] == (1, [22, 23])


def test_figures_of_a_verdict_are_at_most_what_is_possible():
    answer = begin()
    draft(answer, 20)
    most = 2**32 - 1
    boast = Verdict(9, 1, 3, most, most, most, [20, 21])
    assert answer.on_verdict(boast) == News([20, 21], 1, 2)
    stats = answer.stats
    assert (stats.verified, stats.confirmed, stats.accepted) == (MAX_DRAFT, 2, 1)


def test_a_missing_verdict_is_asked_for_once():
    answer = begin()
    assert answer.missed(verdict(5, 22))
    assert not answer.missed(verdict(3, 22)) and not answer.missed(verdict(2, 22, 23))
    assert not answer.missed(msgspec.structs.replace(verdict(5, 22), session=8))
    secret = answer.open().secret
    assert answer.resume() == Resume(9, secret, 3)
    assert answer.resume() is None, "it is on its way"
    assert answer.resume(silence=True) == Resume(9, secret, 3), "it may have been lost"
    assert answer.stats.resumed == 0, "nothing was heard yet"
    hear(answer, verdict(3, 20, 21, 22))
    assert answer.stats.resumed == 1
    assert answer.resume() == Resume(9, secret, 6)


def test_in_lockstep_a_draft_goes_out_and_is_waited_for():
    answer = begin(tactics=LOCKSTEP, draft_length=2)
    main = answer.tree.main
    assert steps(answer) == [main]
    assert answer.pending(idle=False) == 0
    answer.tree.grow(main, Guess(20, 0.9))
    assert steps(answer) == [main]
    answer.tree.grow(main, Guess(21, 0.9))
    assert steps(answer) == [], "two are enough"
    assert answer.pending(idle=True)
    (packet,) = answer.packets()
    assert packet.tokens == [20, 21]
    assert steps(answer) == [] and not answer.pending(idle=True)
    for other in (verdict(2), verdict(4), msgspec.structs.replace(verdict(3), session=8)):
        answer.stands(other)
        assert steps(answer) == [], "it says nothing of this draft"
    # Nothing new came: it must have been lost. A new round, for the same place.
    answer.stands(verdict(3))
    again = draft(answer, 20)[0]
    assert (again.parent, again.base, again.tokens) == (0, 3, [20]) and again.round > packet.round
    hear(answer, verdict(3, 20, 21, 22))
    assert steps(answer) == [answer.tree.main]


def test_in_lockstep_an_empty_draft_asks_for_a_token():
    answer = begin(tactics=LOCKSTEP)
    answer.tree.grow(answer.tree.main, None)
    assert steps(answer) == [] and answer.pending(idle=True) == 1
    (packet,) = answer.packets()
    assert (packet.base, packet.tokens) == (3, [])
    assert not answer.pending(idle=True)


def test_a_stream_to_a_cloud_that_waits_begins_anew_where_something_was_lost():
    """What the last packet leans on may be lost too: to repeat it would wait for ever."""
    answer = begin(Terms(decoding=False))
    draft(answer, 20)
    (last,) = draft(answer, 21)
    assert (last.parent, last.base) == (1, 4)
    answer.stands(verdict(3))
    assert answer.tree.main.ahead == []
    assert answer.pending(idle=True) == 1, "it must be asked, if only with an empty draft"
    (again,) = draft(answer, 30)
    assert (again.parent, again.base, again.tokens) == (0, 3, [30])
    assert again.round > last.round


def test_a_stream_to_a_cloud_that_goes_on_keeps_its_tree():
    answer = begin(Terms())
    draft(answer, 20)
    answer.stands(verdict(3))
    assert answer.tree.main.ahead == [20]
    assert answer.pending(idle=True) == 0, "it need not be asked"


def test_what_streams_is_sent_once_and_nothing_after_the_end():
    answer = begin(most=4)
    path = answer.tree.main
    assert steps(answer) == [path]
    answer.tree.grow(path, Guess(20, 0.9))
    assert answer.pending(idle=False) == 1
    answer.packets()
    assert answer.pending(idle=False) == 0
    for token in (21, 22):
        (path,) = steps(answer)
        answer.tree.grow(path, Guess(token, 0.9))
    assert steps(answer) == [], "the last of four tokens is the target's"
    hear(answer, verdict(3, 20, 21, 22, 23))
    assert answer.done
    assert answer.pending(idle=True) == 0 and steps(answer) == []
    assert answer.on_verdict(verdict(7, 24)) == News()


def test_nobody_drafts_who_is_told_not_to():
    answer = begin(Terms(drafting=False))
    assert steps(answer) == [] and answer.pending(idle=True) == 0
    assert hear(answer, verdict(3, 20)) == (0, [20], None)
    assert answer.stats.hits == {}


def test_other_terms_and_another_server_begin_a_new_tree():
    answer = begin()
    draft(answer, 20, 21)
    hear(answer, verdict(3, 20))
    serve = answer.serve(Terms(drafting=False))
    assert (serve.session, serve.terms) == (9, Terms(drafting=False))
    assert answer.terms == serve.terms and answer.tree.main.ahead == []
    again = answer.open()
    assert (again.prompt_length, again.tokens, again.terms) == (3, [1, 2, 3, 20], serve.terms)


def test_errors_that_can_be_mended_and_those_that_cannot():
    answer = begin()
    answer.open()
    hear(answer, verdict(3, 20))
    assert answer.on_error(Error("session", "gone", 8)) is None, "another's"
    for code in ("session", "hello"):
        assert answer.on_error(Error(code, "gone", 9)).tokens == [1, 2, 3, 20]
        hear(answer, verdict(4))
    assert answer.stats.resumed == 2
    for error in (Error("busy", "full", 9, True), Error("malformed", "x"), Error("hello", "x")):
        with pytest.raises(LinkError, match=error.message) as caught:
            answer.on_error(error)
        assert (caught.value.code, caught.value.retryable) == (error.code, error.retryable)


def test_hints_open_paths_and_are_counted():
    answer = begin(Terms(hints=True), exits={1: 0.9})
    draft(answer, 20, 21)
    answer.on_hint(Hint(8, 1, 3, 1, [30]))
    answer.on_hint(Hint(9, 1, 2, 1, [30]))
    assert len(answer.tree.paths) == 1, "another's, and a stale one"
    answer.on_hint(Hint(9, 1, 3, 1, [20, 31]))
    (path,) = [path for path in answer.tree.paths if path.via == "hint"]
    assert path.ahead == [20, 31] and path.confidences[1] == 0.9
    answer.tree.grow(path, Guess(32, 0.9))
    assert hear(answer, verdict(3, 20, 31, round_=1, accepted=1))[2] == "hint"
    assert answer.tree.main.ahead == [32]
    assert (answer.stats.hints[1].right, answer.stats.hints[1].total) == (2, 2)
    # Without terms for them they are only counted.
    answer = begin(Terms())
    draft(answer, 20, 21)
    answer.on_hint(Hint(9, 1, 3, 1, [30]))
    assert len(answer.tree.paths) == 1


def test_hints_of_layers_without_an_exit_head_are_dropped():
    answer = begin(Terms(hints=True))
    draft(answer, 20, 21)
    for layer in (0, 2, 3, 200):
        answer.on_hint(Hint(9, 1, 3, layer, [30]))
    hear(answer, verdict(3, 30))
    assert list(answer.stats.hints) == [2]


def test_the_end():
    answer = begin()
    assert answer.close() == Close(9, answer.open().secret)


class Letters:
    """A text stream with a letter for each token."""

    stopped = False

    def push(self, token):
        return chr(token)

    def fork(self, prompt, tokens):
        return Letters()

    def flush(self):
        return ""


@pytest.mark.parametrize(
    ("target", "texts", "correction"),
    [("bcd", ["", "", "d"], None), ("bxy", ["", "x", "y"], 2)],
    ids=["confirmed", "corrected"],
)
def test_unverified_text_is_confirmed_or_withdrawn_from_the_first_difference(
    target, texts, correction
):
    answer = begin()
    answer._text = Letters()
    hear(answer, verdict(3, ord("a")))
    for token in b"bc":
        answer.add_unverified(Guess(token, 0.9), 0.0)
    assert [piece.origin for piece in answer.unread] == ["target", "unverified", "unverified"]
    before = len(answer.unread)
    hear(answer, verdict(4, *target.encode()))
    pieces = list(answer.unread)[before:]
    assert [piece.text for piece in pieces] == texts
    assert [piece.correction for piece in pieces if piece.correction] == [correction] * bool(
        correction
    )
    shown = ""
    for piece in answer.unread:
        shown = shown[: piece.correction] + piece.text
    assert shown == "a" + target and not answer.unverified
