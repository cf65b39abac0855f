"""Several answers of one loop: each has its own session and text, and they share draft steps."""

from dataclasses import replace
from itertools import count, pairwise

import pytest

from edge_runtime.observer import Observer
from edgespec.config import Request, Tactics
from edgespec.errors import LinkError
from edgespec.protocol import Admitted, Error, Hello, Open, Ping, Resume, Verdict
from edgespec.sampling import Sampling
from engines.drafters.model import ModelDrafter
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine

REQUESTS = [
    Request((3, 1, 4, 1, 5)[: 2 + n % 4], 30 + n, Sampling(0.7 * (n % 2), seed=n)) for n in range(6)
]


def write_all(loop, answers):
    for answer in answers:
        loop.open(answer)
    for _ in range(10_000):
        loop.turn()
        for answer in [answer for answer in loop.running if answer.over]:
            loop.close(answer)
        if not loop.running:
            return
    raise AssertionError("the answers never ended")


@pytest.mark.parametrize(
    "settings",
    [{}, {"mode": "edge"}, {"tactics": Tactics("none"), "draft_length": 3}, {"mode": "cloud"}],
    ids=["auto", "edge", "lockstep", "cloud"],
)
@pytest.mark.parametrize(
    "drafter",
    [lambda: ModelDrafter(ToyEngine(noise=0.3), "near"), NgramDrafter, NoDrafter],
    ids=["model", "ngram", "none"],
)
def test_every_answer_of_one_loop_is_the_targets_own(house, drafter, settings):
    home = house(ToyEngine())
    loop = home.device(drafter(), **settings)
    answers = [loop.start(request) for request in REQUESTS]
    write_all(loop, answers)
    for answer, request in zip(answers, REQUESTS, strict=True):
        assert answer.stats.token_ids == home.alone(request)
        assert answer.stats.tokens == len(answer.unread) == request.max_tokens
    assert home.service.sessions.active == 0


ADJUSTED = [
    Sampling(presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2),
    Sampling(1.0, seed=3, repetition_penalty=0.7, logit_bias=((7, 3.0), (9, -5.0))),
    Sampling(0.8, 0.9, 12, 4, min_p=0.05, frequency_penalty=-0.2),
    Sampling(logit_bias=((11, 100.0),), presence_penalty=2.0),
]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "edge"},
        {"tactics": Tactics("none"), "draft_length": 3},
        {"tactics": Tactics("exits", hints=True)},
        {"mode": "cloud-draft"},
    ],
    ids=["auto", "edge", "lockstep", "hints", "cloud-draft"],
)
def test_every_adjusted_answer_is_the_targets_own_and_is_drafted(house, settings):
    drafts = ModelDrafter(ToyEngine(noise=0.2), "beside")
    home = house(ToyEngine(), cloud_draft=drafts)
    loop = home.device(ModelDrafter(ToyEngine(noise=0.2), "near"), **settings)
    requests = [Request((3, 1, 4, 1, 5), 60, sampling) for sampling in ADJUSTED]
    plain = [home.alone(replace(request, sampling=Sampling())) for request in requests]
    answers = [loop.start(request) for request in requests]
    write_all(loop, answers)
    for answer, request, other in zip(answers, requests, plain, strict=True):
        assert answer.stats.token_ids == home.alone(request) != other
    if settings.get("draft_length"):
        # A draft without the adjustments would be right once in 50 tokens.
        verified = sum(answer.stats.verified for answer in answers)
        assert sum(answer.stats.confirmed for answer in answers) > 0.4 * verified > 40


def test_choices_for_one_prompt_run_it_once_in_the_cloud(house):
    home = house(ToyEngine())
    ran, run = [], home.engine.run

    def counted(rows):
        ran.extend(len(row.tokens) for row in rows)
        return run(rows)

    home.engine.run = counted
    loop = home.device(NoDrafter())
    prompt = tuple(n % 50 for n in range(300))
    requests = [Request(prompt, 12, Sampling(0.9, seed=seed)) for seed in range(4)]
    answers = [loop.start(request) for request in requests]
    write_all(loop, answers)
    home.engine.run = run
    # The last token of the prompt is run for each choice, and so is each token but the last.
    assert sum(ran) == 299 + 4 * 12
    assert home.service.memory.counts.prefix_hits == 3 * 299
    assert [answer.stats.token_ids for answer in answers] == [home.alone(r) for r in requests]
    assert len({tuple(answer.stats.token_ids) for answer in answers}) == 4


def test_an_answer_may_join_and_leave_while_others_are_written(house):
    home = house(ToyEngine())
    loop = home.device(ModelDrafter(ToyEngine(noise=0.3), "near"))
    first, second, third = (loop.start(request) for request in REQUESTS[:3])
    loop.open(first)
    while first.stats.tokens < 5:
        loop.turn()
    loop.open(second)
    while second.stats.tokens < 3:
        loop.turn()
    loop.close(second)
    write_all(loop, [third])
    home.hub.pump()
    for answer, request in ((first, REQUESTS[0]), (third, REQUESTS[2])):
        assert answer.stats.token_ids == home.alone(request)
    assert 3 <= len(second.stats.token_ids) < REQUESTS[1].max_tokens
    assert home.service.sessions.active == 0


def test_an_error_ends_the_answer_that_it_is_about(house):
    home = house(ToyEngine())
    loop = home.device(NoDrafter())
    failing, other = (loop.start(request) for request in REQUESTS[:2])
    receive, news = loop._link.receive, [Error("invalid", "no", failing.session_id)]
    loop._link.receive = lambda timeout: [*(news and [news.pop()]), *receive(timeout)]
    write_all(loop, [failing, other])
    assert isinstance(failing.error, LinkError) and "no" in str(failing.error)
    assert other.error is None and other.stats.token_ids == home.alone(REQUESTS[1])


@pytest.mark.parametrize("admits", [False, True])
def test_a_cloud_that_forgets_every_session_is_asked_with_pauses_and_given_up(house, admits):
    home = house(ToyEngine())
    loop = home.device(NoDrafter(), give_up=5.0)
    link, opened = loop._link, []
    receive, send = link.receive, link.send

    def refuse(message):
        if isinstance(message, Open):
            opened.append(link.clock())
            assert len(opened) < 200
            link.refusals += [Admitted(message.session)] * admits
            link.refusals += [Error("session", "gone", message.session, True)] * 3
        elif isinstance(message, Hello | Ping):
            send(message)

    def refused(timeout):
        messages, link.refusals = [*link.refusals, *receive(timeout)], []
        return messages

    link.refusals, link.send, link.receive = [], refuse, refused
    with pytest.raises(LinkError, match="the cloud refused for 5 s: gone"):
        list(loop.write(loop.start(REQUESTS[0])))
    pauses = [later - earlier for earlier, later in pairwise(opened)]
    assert pauses[0] < 0.01, "it may have been started anew"
    assert all(pause > 0.04 for pause in pauses[1:-1])
    assert 4.5 < opened[-1] - opened[0] < 5.5


def test_an_error_about_an_answer_does_not_put_off_giving_up(house):
    home = house(ToyEngine())
    loop = home.device(NoDrafter(), give_up=2.0, patience=0.5)
    answer = loop.start(REQUESTS[0])
    times = count()
    loop._clock = lambda: next(times) / 20
    loop.open(answer)
    errors = [Error("session", "gone", answer.session_id, True)]
    late = answer.timing.began + 1.5
    loop._link.receive = lambda timeout: [errors.pop()] if errors and loop._clock() > late else []
    while not answer.over:
        loop.turn()
    assert not errors and isinstance(answer.error, LinkError)
    assert loop._clock() - answer.timing.began < 2.5


def test_a_lost_verdict_is_asked_for_although_other_answers_are_heard(house):
    home = house(ToyEngine())
    loop = home.device(NoDrafter(), patience=0.5)
    times = count()
    loop._clock = lambda: next(times) / 20
    lossy, other = (loop.start(Request((2, 7), 60, Sampling(0.7, seed=n))) for n in range(2))
    receive, send, lost, asked = loop._link.receive, loop._link.send, [], []

    def note(message):
        if isinstance(message, Resume):
            asked.append(message.session)
        send(message)

    def lose(timeout):
        """Loses every verdict of one session until it asks."""
        kept = []
        for message in receive(timeout):
            of_lossy = isinstance(message, Verdict) and message.session == lossy.session_id
            if of_lossy and lossy.session_id not in asked:
                lost.append(message)
            else:
                kept.append(message)
        return kept

    loop._link.receive, loop._link.send = lose, note
    write_all(loop, [lossy, other])
    assert lost and lossy.stats.resumed and not other.stats.resumed
    for answer in (lossy, other):
        assert answer.stats.token_ids == home.alone(answer.request)


def test_pieces_name_what_proposed_their_token(house):
    home = house(ToyEngine())
    tactics = Tactics("none")
    loop = home.device(ModelDrafter(ToyEngine(), "same"), tactics=tactics, draft_length=3)
    answer = loop.start(REQUESTS[0])
    origins = [piece.origin for piece in loop.write(answer)]
    assert origins[:9] == ["target", *["device", "device", "device", "target"] * 2]
    assert origins.count("device") == answer.stats.accepted
    loop = home.device(NoDrafter())
    assert {piece.origin for piece in loop.write(loop.start(REQUESTS[0]))} == {"target"}


def test_a_silent_link_is_reported_once_and_measured(house):
    told = []
    home = house(ToyEngine())
    loop = home.device(NoDrafter())
    loop._observer = Observer(report=told.append)
    times = count()
    loop._clock = lambda: next(times) / 5
    answer = loop.start(REQUESTS[0])
    receive, silent = loop._link.receive, iter(range(12))
    loop._link.receive = lambda timeout: [] if next(silent, None) is not None else receive(timeout)
    written = [piece.token for piece in loop.write(answer)]
    assert written == home.alone(REQUESTS[0])
    assert [sentence for sentence in told if sentence.startswith("waiting for the cloud")] == told
    assert len(told) == 1 and len(answer.stats.stalls) == 1


def test_an_answer_that_was_complete_before_asks_the_cloud_for_nothing(house):
    home = house(ToyEngine())
    loop = home.device(NoDrafter())
    expected = home.alone(REQUESTS[0])
    answer = loop.start(replace(REQUESTS[0], committed=tuple(expected)))
    pieces = list(loop.write(answer))
    home.hub.pump()
    assert [piece.token for piece in pieces] == expected == answer.stats.token_ids
    assert {piece.origin for piece in pieces} == {"restored"} and not answer.stats.tokens
    assert not home.service.tally.opened


@pytest.mark.parametrize("kept", [1, 7, 29])
def test_an_answer_goes_on_from_tokens_committed_before(house, kept):
    home = house(ToyEngine())
    loop = home.device(ModelDrafter(ToyEngine(noise=0.3), "near"))
    expected = home.alone(REQUESTS[1])
    answer = loop.start(replace(REQUESTS[1], committed=tuple(expected[:kept])))
    assert [piece.token for piece in loop.write(answer)] == expected == answer.stats.token_ids
    assert (answer.stats.restored, answer.stats.tokens) == (kept, len(expected) - kept)


def test_waits_that_end_early_count_for_what_they_lasted(house):
    home = house(ToyEngine())
    loop = home.device(NoDrafter(), give_up=1.0, patience=5.0)
    now = iter(count())
    loop._clock = lambda: next(now) * 1e-5
    answer = loop.start(REQUESTS[0])
    receive, early = loop._link.receive, iter(range(300))
    # An event of the socket or an order of another thread ends a wait without a message.
    loop._link.receive = lambda timeout: [] if next(early, None) is not None else receive(timeout)
    assert [piece.token for piece in loop.write(answer)] == home.alone(REQUESTS[0])


def test_a_cloud_of_other_arithmetic_is_reported_once(house):
    reports = []
    home = house(ToyEngine())
    home.arithmetic = "onnxruntime 1, x86_64 avx2, fp32"
    home.start()
    loop = home.device(NoDrafter(), observer=Observer(report=reports.append))
    answer = loop.start(Request((3, 1, 4), 30))
    loop.open(answer)
    while answer.stats.tokens < 5:
        loop.turn()
    home.arithmetic = "onnxruntime 2, x86_64 avx2, fp32"
    home.start()
    for _ in range(2):
        while not answer.over:
            loop.turn()
        loop.close(answer)
        answer = loop.start(Request((3, 1, 4), 5))
        loop.open(answer)
    assert [report for report in reports if "computes" in report] == [
        "this cloud computes with onnxruntime 2, x86_64 avx2, fp32, the one before with "
        "onnxruntime 1, x86_64 avx2, fp32; where two tokens are almost equally likely, answers may "
        "differ"
    ]
