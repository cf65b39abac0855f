"""What a failing target does to a running cloud."""

import pytest

from edgespec.config import Request
from edgespec.errors import EngineError, LinkError
from engines.drafting import NoDrafter
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
    pieces = loop.write(loop.start(request), request)
    next(pieces)
    home.engine.fail = True
    with pytest.raises(LinkError, match="no memory"):
        list(pieces)
    assert home.service.active == 0
    answer = home.answer(NoDrafter(), request)
    assert answer.stats.token_ids == home.alone(request)
