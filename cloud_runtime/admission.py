"""Admission of new sessions: whether one can be served, and how long it has to wait. Pure."""

from __future__ import annotations

import numpy as np

from cloud_runtime.memory.ledger import Memory
from cloud_runtime.memory.limits import megabytes
from edgespec.errors import UsageError
from edgespec.policies import SchedulerPolicy
from edgespec.protocol import Open
from engines.base import Engine


def waiting_time(ahead: int, active: int, answer_s: float) -> float:
    """Seconds until `ahead` of `active` sessions have ended, each of which lasts `answer_s`.

    Little's law: `active / answer_s` sessions end per second.
    """
    return ahead * answer_s / max(active, 1)


class AnswerDurations:
    """Mean duration of recent answers, from opening to end."""

    def __init__(self, policy: SchedulerPolicy = SchedulerPolicy()) -> None:
        self._policy = policy
        self.mean_s = policy.first_answer_s
        self._ended = 0

    def ended(self, seconds: float) -> None:
        """Adds an answer. The first ones count equally; later, recent ones count more."""
        self._ended += 1
        weight = max(self._policy.answer_smoothing, 1 / self._ended)
        self.mean_s += weight * (seconds - self.mean_s)


def unfit(message: Open, engine: Engine, memory: Memory) -> str:
    """The reason why a session can never be served here; empty: it can."""
    try:
        message.sampling.check()
    except UsageError as error:
        return str(error)
    prompt, answer = message.prompt_length, message.max_tokens
    if not 0 < prompt <= len(message.tokens):
        return f"a prompt of {prompt} in {len(message.tokens)} tokens"
    sizes = f"a prompt of {prompt} and an answer of {answer} tokens"
    if answer < 1 or prompt + answer > engine.context:
        return f"{sizes} do not fit a context of {engine.context}"
    if prompt + answer > memory.context:
        needed = megabytes(engine.slot_bytes(prompt + answer))
        return (
            f"{sizes} need {needed} of KV cache, and the cloud has {megabytes(memory.limit)} in all"
        )
    biased = (token for token, _ in message.sampling.logit_bias)
    largest = max([int(np.asarray(message.tokens).max()), *biased])
    if largest >= engine.vocabulary:
        return f"token {largest} of a vocabulary of {engine.vocabulary}"
    return ""
