"""Answers that repeat a prediction: drafted from it, and the target's own in any case."""

from dataclasses import replace

import pytest

from edge_runtime.prediction import Prediction
from edgespec.config import Request, Tactics
from edgespec.sampling import Sampling
from engines.drafters.model import ModelDrafter
from engines.toy import ToyEngine

GREEDY = Sampling()
REQUEST = Request((3, 1, 4, 1, 5), 60)


class Counted(ModelDrafter):
    """A draft model that counts its steps."""

    steps = 0

    def guess(self, requests):
        self.steps += len(requests)
        return super().guess(requests)


def test_the_prediction_is_followed_and_found_again():
    prompt, predicted = [50, 51, 52], [7, 8, 9, 10, 11, 12]
    prediction = Prediction(prompt, predicted)
    tokens = list(prompt)
    for wanted in (7, 8, 9):
        assert prediction.guess(tokens, GREEDY).token == wanted
        tokens.append(wanted)
    assert prediction.guess([*tokens, 99], GREEDY) is None
    assert prediction.guess([*tokens, 99, 10], GREEDY) is None
    assert prediction.guess([*tokens, 99, 10, 11], GREEDY).token == 12
    assert prediction.drafted(3, 7) and not prediction.drafted(3, 7)
    assert not prediction.drafted(4, 7) and not prediction.drafted(8, 12)


def test_what_only_the_answer_repeats_is_no_prediction():
    prediction = Prediction([1], [7, 8])
    assert prediction.guess([1, 20, 21, 22, 20, 21], GREEDY) is None


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, seed=5)])
@pytest.mark.parametrize("tactics", [Tactics(), Tactics("none")])
def test_a_right_prediction_spares_draft_steps(house, sampling, tactics):
    home = house(ToyEngine())
    request = replace(REQUEST, sampling=sampling)
    wanted = home.alone(request)

    def written(prediction):
        drafter = Counted(ToyEngine(noise=0.3), "near")
        asked = replace(request, prediction=tuple(prediction))
        answer = home.answer(drafter, asked, mode="edge", tactics=tactics)
        assert answer.stats.token_ids == wanted
        return answer.stats, drafter.steps

    plain, steps = written([])
    helped, fewer = written(wanted)
    assert fewer < steps / 4 and 0 < helped.predicted <= helped.accepted
    assert not plain.predicted
    edited, _ = written([*wanted[:20], 1, 2, *wanted[22:]])
    wrong, _ = written([token + 1 for token in wanted])
    assert wrong.predicted < helped.predicted and "came from the prediction" in wrong.as_text()
    if tactics.streaming:
        return  # the toy target decodes faster than drafts arrive
    assert helped.rounds < plain.rounds and helped.predicted > len(wanted) / 2
    assert len(wanted) / 3 < edited.predicted < helped.predicted
