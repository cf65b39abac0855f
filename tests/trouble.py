"""Every way of writing an answer, and what may come in between: for the tests of exactness."""

from edgespec.config import Tactics
from edgespec.protocol import Terms

WAYS = {
    "auto": {},
    "edge": {"mode": "edge"},
    "no branches": {"tactics": Tactics(branches=False)},
    "hints": {"tactics": Tactics(hints=True)},
    "cloud waits": {"mode": "edge", "tactics": Tactics(lockstep=True)},
    "lock-step 1": {"tactics": Tactics("none"), "draft_length": 1},
    "lock-step 5": {"tactics": Tactics("none"), "draft_length": 5},
    "lock-step, cloud goes on": {"tactics": Tactics("none", lockstep=False)},
    "exits 3": {"tactics": Tactics("exits"), "draft_length": 3},
    "cloud": {"mode": "cloud"},
    "cloud-draft": {"mode": "cloud-draft"},
}


class Trouble:
    """A link that delays, drops, doubles and reorders packets either way, as reconnects may."""

    def __init__(self, link, chance):
        self._link, self._chance = link, chance
        self._up, self._down = [], []
        self._send, self._receive = link.send, link.receive
        link.send, link.receive = self.send, self.receive

    def _through(self, waiting):
        """Some of what waits, in any order, some of it twice."""
        out = []
        for message in list(waiting):
            if self._chance.random() < 0.6:
                waiting.remove(message)
                out += [message] * self._chance.choice([0, 1, 1, 1, 1, 1, 2])
        if self._chance.random() < 0.2:
            self._chance.shuffle(out)
        return out

    def send(self, message):
        self._up.append(message)

    def receive(self, timeout):
        for message in self._through(self._up):
            self._send(message)
        self._down += self._receive(0.0)
        messages = self._through(self._down)
        self._link.skipped_s += 0.0 if messages else timeout
        return messages


class Fickle:
    """Terms that change in the middle of an answer, for no reason."""

    def __init__(self, modes, chance):
        self._modes, self._chance, self._terms = modes, chance, modes.terms

    def __getattr__(self, name):
        return getattr(self._modes, name)

    @property
    def terms(self):
        return self._terms

    def reconsider(self):
        if self._chance.random() > 0.15:
            return False
        flags = [self._chance.random() < 0.5 for _ in range(3)]
        self._terms = Terms(*flags[:2], decoding=not flags[0] or flags[2], hints=flags[1])
        return True
