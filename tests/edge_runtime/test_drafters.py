import pytest

from edge_runtime.drafters import ModelDrafter, NgramDrafter
from edgespec.sampling import Sampling, choose
from engines.base import Row, final_choices
from engines.toy import ToyEngine


def alone(tokens, count, sampling, engine):
    slot, text = engine.open(), list(tokens)
    while len(text) < len(tokens) + count:
        start = engine.cached(slot)
        (choices,) = final_choices(engine, [Row(slot, start, text[start:])])
        text.append(choose(choices.logits[0], sampling, len(text)))
    return text[len(tokens) :]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=3)], ids=["greedy", "sampled"])
def test_a_model_drafts_what_it_would_write_whatever_was_rejected_before(sampling):
    drafter = ModelDrafter(ToyEngine(), "toy")
    texts = [[1], [1, 2, 3], [1, 2, 3, 9, 9], [1, 2, 3, 9, 9, 4], list(range(1, 40)) * 3]
    for text in texts:
        for count in (1, 4, 3):
            expected = alone(text, count, sampling, ToyEngine())
            assert drafter.draft(text, count, sampling) == expected
    drafter.reset()
    assert drafter.draft([5, 5], 3, sampling) == alone([5, 5], 3, sampling, ToyEngine())


def test_a_model_stops_at_its_context():
    drafter = ModelDrafter(ToyEngine(context=10), "toy")
    assert len(drafter.draft([1] * 8, 5, Sampling())) == 3
    assert len(drafter.draft([1] * 10, 5, Sampling())) == 1
    assert drafter.draft([1] * 11, 5, Sampling()) == []


@pytest.mark.parametrize(
    ("text", "count", "drafted"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 9, 1, 2, 4, 1, 2], 1, [4]),
        ([5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2], 1, [3]),
        ([7, 8, 7, 8], 5, [7, 8, 7, 8, 7]),
        ([1, 2, 3], 4, []),
        ([1], 4, []),
    ],
)
def test_prompt_lookup_takes_the_longest_then_latest_ending(text, count, drafted):
    assert NgramDrafter().draft(text, count, Sampling()) == drafted


def test_prompt_lookup_learns_as_the_text_grows():
    drafter = NgramDrafter()
    text = [1, 2, 3, 4]
    assert drafter.draft(text, 2, Sampling()) == []
    text += [5, 1, 2]
    assert (
        drafter.draft(text, 3, Sampling()) == [3, 4, 5] == NgramDrafter().draft(text, 3, Sampling())
    )
    drafter.reset()
    assert drafter.draft([1, 2], 2, Sampling()) == []
