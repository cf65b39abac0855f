"""A running cloud whose target or cloud draft fails."""

import pytest

from edgespec.config import Request
from edgespec.errors import EngineError, LinkError
from engines.drafters.model import ModelDrafter
from engines.drafters.none import NoDrafter
from engines.toy import ToyEngine


class Failing(ToyEngine):
    """Runs out of memory once, in the middle of a batch."""

    fail = False

    def run(self, rows):
        for step in super().run(rows):
            if self.fail and not step.final:
                self.fail = False
                raise EngineError("no memory")
            yield step


def test_the_sessions_of_a_failed_batch_end_and_the_cloud_goes_on(house):
    home = house(Failing())
    request = Request((1, 2), 20)
    loop = home.device(NoDrafter())
    pieces = loop.write(loop.start(request))
    next(pieces)
    home.engine.fail = True
    with pytest.raises(LinkError, match="no memory"):
        list(pieces)
    assert home.service.sessions.active == 0
    answer = home.answer(NoDrafter(), request)
    assert answer.stats.token_ids == home.alone(request)


def test_sessions_whose_cloud_draft_fails_go_on_without_it(house, caplog):
    draft = Failing()
    home = house(ToyEngine(), cloud_draft=ModelDrafter(draft, "toy", branches=1))
    request = Request((1, 2), 60)
    loop = home.device(NoDrafter())
    answer = loop.start(request)
    pieces = loop.write(answer)
    for _ in range(12):
        next(pieces)
    drafted = home.service.tally.cloud_draft_steps
    draft.fail = True
    for _ in pieces:
        pass
    assert answer.stats.token_ids == home.alone(request)
    assert home.service.tally.cloud_draft_steps == drafted + 1
    assert "the cloud draft failed on 1 sessions: no memory" in caplog.text
    later = home.answer(NoDrafter(), request)
    assert later.stats.token_ids == home.alone(request)
    assert home.service.tally.cloud_draft_steps > drafted + 1, "the next session tries again"
