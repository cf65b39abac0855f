"""Differences between two answers, and the prompts of a verification."""

import math

import pytest

from edge_runtime.difference import Candidate, Difference, first_difference, gap_of
from edge_runtime.verify import PROMPTS, read_prompts
from edgespec.adjustments import adjustments_of
from edgespec.errors import UsageError
from edgespec.sampling import Sampling, choose
from engines.alone import write_alone
from engines.base import Row, final_choices
from engines.toy import ToyEngine


class Letters:
    """A codec whose token 0 is "a"."""

    def decode(self, ids):
        return "".join(chr(97 + token) for token in ids)


def difference(gap_logits, precision="fp32"):
    return Difference(0, Candidate(1), Candidate(2), gap_logits, precision)


def test_identical_answers_have_no_difference():
    assert first_difference([1, 2], [1, 2], Letters()) is None
    assert first_difference([], [], Letters()) is None


def test_the_first_difference_names_position_and_both_candidates():
    assert first_difference([1, 2, 3], [1, 4, 5], Letters()) == Difference(
        1, Candidate(2, "c"), Candidate(4, "e")
    )
    shorter = first_difference([1, 2], [1], Letters())
    assert (shorter.position, shorter.expected, shorter.found) == (
        1, Candidate(2, "c"), Candidate(None)
    )  # fmt: skip


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=3)])
def test_the_gap_is_the_lead_of_the_targets_token(sampling):
    engine, prompt = ToyEngine(), [3, 1, 4]
    answer = write_alone(engine, prompt, 10, sampling)
    found = [*answer[:6], (answer[6] + 1) % engine.vocabulary]
    gap = gap_of(first_difference(answer, found, Letters()), prompt, answer, sampling, engine)
    assert gap > 0
    if sampling.greedy:
        slot = engine.open()
        (choices,) = final_choices(engine, [Row(slot, 0, [*prompt, *answer[:6]])])
        logits = choices.logits[0]
        assert choose(logits, sampling, 9) == answer[6]
        assert gap == pytest.approx(logits[answer[6]] - logits[found[6]])


def test_the_gap_is_that_of_the_adjusted_logits():
    engine, prompt = ToyEngine(), [3, 1, 4]
    sampling = Sampling(presence_penalty=2.0, repetition_penalty=1.5, logit_bias=((7, 0.5),))
    answer = write_alone(engine, prompt, 10, sampling)
    (choices,) = final_choices(engine, [Row(engine.open(), 0, [*prompt, *answer[:6]])])
    for token in (answer[2], 7, 3, (answer[6] + 1) % 50):
        found = Difference(6, Candidate(answer[6]), Candidate(token))
        logits = adjustments_of(sampling, prompt).apply(choices.logits[0], [*prompt, *answer[:6]])
        gap = gap_of(found, prompt, answer, sampling, engine)
        assert gap == pytest.approx(logits[answer[6]] - logits[token]) and gap >= 0


def test_the_gap_beyond_top_p_is_infinite_and_that_of_an_end_unknown():
    engine, prompt, sampling = ToyEngine(), [3, 1, 4], Sampling(0.8, 0.3, seed=3)
    answer = write_alone(engine, prompt, 4, sampling)
    gaps = {
        gap_of(Difference(2, Candidate(answer[2]), Candidate(t)), prompt, answer, sampling, engine)
        for t in range(engine.vocabulary)
    }
    assert math.inf in gaps
    assert 0.0 in gaps
    ended = Difference(2, Candidate(answer[2]), Candidate(None))
    assert gap_of(ended, prompt, answer, sampling, engine) is None


@pytest.mark.parametrize(
    ("found", "words", "near"),
    [
        (difference(None), "unknown", False),
        (difference(math.inf), "unclear", False),
        (difference(0.0002), "near tie: 0.0002 logits apart", True),
        (difference(-0.0002), "near tie: 0.0002 logits apart", True),
        (difference(0.5), "fault: 0.5 logits apart", False),
        (difference(0.5, "int8"), "near tie: 0.5 logits apart, which rounding in int8", True),
    ],
)
def test_a_gap_is_a_near_tie_or_a_fault(found, words, near):
    assert words in found.explain()
    assert found.near_tie == near


def test_prompts_are_json_lines(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one"}\n\n{"prompt": "two", "category": "x"}\n')
    assert read_prompts(file) == ["one", "two"]
    assert read_prompts(None) == list(PROMPTS)


def test_prompts_that_are_not_there_are_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="none cannot be read: No such file"):
        read_prompts(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "one"}\nnot JSON', "line 2 is no prompt"),
        (b'{"text": "one"}', "line 1 is no prompt"),
        (b"\n", "has no prompts"),
        (b'{"prompt": "\xff"}', "is not UTF-8"),
    ],
)
def test_bad_prompts_are_refused_with_their_line(tmp_path, content, words):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_prompts(file)
