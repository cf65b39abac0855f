"""The training loop of a draft: steps, schedule, held-out agreement and checkpoints.

A killed run continues from its last checkpoint, at most `SAVE_S` of training back. The schedule
depends on the completed fraction of the run, by steps or by time (the larger one): a short warm-up,
then a cosine down to a twentieth of the learning rate.
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.corpus import Corpus, Sample
from calibration.decoder import Decoder, autocast
from calibration.distillation.batches import TrainingBatch, batch, batches
from calibration.distillation.losses import Objective, loss
from edgespec.errors import EdgespecError, UsageError

SAVE_S = 45.0
EVALUATE_S = 120.0
HELD_OUT_TOKENS = 6_000
_WARM_UP_RATIO = 0.02
"""Fraction of the run during which the learning rate rises."""
_MAX_GRADIENT_NORM = 1.0
_FALLBACK_ONE_IN = 8
"""One sample in so many is held out where the corpus holds out none."""
_EVALUATED_SAMPLES = 16
"""Samples of a batch for measuring agreement."""
_DAMAGED = (
    OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """Length and rate of a training. The names are stored with unfinished work."""

    hours: float = 2.0
    """Limit of training time, including the time before an interruption."""
    steps: int = 0
    """Limit of steps; 0: none."""
    batch_tokens: int = 4096
    rate: float = 4e-4
    objective: Objective = "mixed"


@dataclass
class State:
    """Progress of a run. `seconds` is the time spent training, over all its starts."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0

    def over(self, schedule: Schedule) -> float:
        """Return the completed fraction of the run, 0 to 1."""
        by_steps = self.step / schedule.steps if schedule.steps else 0.0
        return min(1.0, max(by_steps, self.seconds / (schedule.hours * 3600)))


@dataclass(frozen=True)
class TrainingStep:
    """The result of a step; `agreement` is None unless it was just measured."""

    state: State
    loss: float
    agreement: float | None

    def sentence(self) -> str:
        """Return a line about a step whose agreement was measured."""
        return (
            f"{self.state.seconds / 60:.1f} min, step {self.state.step}, {self.state.tokens} "
            f"tokens: loss {self.loss:.3f}, held-out agreement {self.agreement:.3f}"
        )


class Trainer:
    """Trains `draft` on `corpus`. `kept` are the ids of a trimmed vocabulary, or None."""

    def __init__(
        self,
        draft: Decoder,
        corpus: Corpus,
        schedule: Schedule,
        folder: Path,
        seed: int,
        kept_out: frozenset[bytes] = frozenset(),
    ) -> None:
        """Prepare a run; `kept_out` are the ids of samples that are used for measuring only."""
        self.draft = draft
        self.state = State()
        self.kept: Tensor | None = None
        self._corpus = corpus
        self._schedule = schedule
        self._path = folder / "training.pt"
        self._seed = seed
        self._kept_out = kept_out
        self._device = draft.output.device
        draft.requires_grad_(True)
        draft.model.embed_tokens.requires_grad_(False)
        draft.output.requires_grad_(False)
        matrices = [p for p in draft.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in draft.parameters() if p.requires_grad and p.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": 0.01},
            {"params": vectors, "weight_decay": 0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.95), fused=True)
        self._trained = {n: p for n, p in draft.named_parameters() if p.requires_grad}

    def run(self) -> Iterator[TrainingStep]:
        """Train to the end of the schedule. Save every `SAVE_S` seconds and at the end."""
        held_out = self._held_out()
        yield TrainingStep(self.state, math.nan, self.agreement(held_out))
        saved = evaluated = self.state.seconds
        for chosen in self._stream():
            before = time.monotonic()
            value = self._step(batch(chosen, self._device))
            self.state.seconds += time.monotonic() - before
            done = self.state.over(self._schedule) >= 1
            agreement = None
            if done or self.state.seconds - evaluated > EVALUATE_S:
                agreement, evaluated = self.agreement(held_out), self.state.seconds
            if done or self.state.seconds - saved > SAVE_S:
                self.save()
                saved = self.state.seconds
            yield TrainingStep(self.state, value, agreement)
            if done:
                return

    def _held_out(self) -> list[Sample]:
        """Return the samples that agreement is measured on.

        A corpus of few requests may hold out none. Then some samples are kept out of the training.
        """
        chosen: list[Sample] = []
        tokens = 0
        for sample in self._corpus.samples(held_out=True):
            if tokens >= HELD_OUT_TOKENS:
                break
            chosen.append(sample)
            tokens += len(sample.ids) - 1 - sample.answer
        if not chosen:
            every = list(self._corpus.samples(held_out=False))
            chosen = every[: max(1, len(every) // _FALLBACK_ONE_IN)]
            self._kept_out |= {sample.ids.tobytes() for sample in chosen}
            if len(self._kept_out) >= len({sample.ids.tobytes() for sample in every}):
                raise UsageError(
                    f"{self._corpus.folder} has too few different answers to train on; "
                    "raise --tokens, or pass more prompts"
                )
        return chosen

    def _stream(self) -> Iterator[list[Sample]]:
        """Yield batches without end. Each lap reads the corpus again, with its new samples."""
        while True:
            samples = [
                sample
                for sample in self._corpus.samples(held_out=False)
                if sample.ids.tobytes() not in self._kept_out
            ]
            random = np.random.default_rng([self._seed, self.state.step])
            yield from batches(samples, self._schedule.batch_tokens, random)

    def _step(self, part: TrainingBatch) -> float:
        over = self.state.over(self._schedule)
        rise = min(1.0, (over + 1e-4) / _WARM_UP_RATIO)
        rate = self._schedule.rate * rise * (0.05 + 0.95 * (1 + math.cos(math.pi * over)) / 2)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with autocast(self._device):
            features = self.draft.features(part.ids)[part.learn]
            value = loss(features @ self._words(part).T, part, self._schedule.objective)
        self._optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._trained.values()), _MAX_GRADIENT_NORM)
        self._optimizer.step()
        if not math.isfinite(float(value.detach())):
            raise EdgespecError(
                f"the loss is {float(value.detach())} at step {self.state.step}; "
                "train with a lower --rate, into another folder"
            )
        self.state.step += 1
        self.state.tokens += int(part.learn.sum())
        return float(value.detach())

    def _words(self, part: TrainingBatch) -> Tensor:
        """Return the output rows of the batch's candidates.

        Trimmed tokens are never drafted. They stay in the sum of the loss, without harm.
        """
        return self.draft.output[part.candidates]

    @torch.no_grad()
    def agreement(self, samples: Sequence[Sample]) -> float:
        """Return the fraction of answer tokens at which the draft's arg-max is the target's."""
        return agreement(self.draft, samples, self.kept)

    def save(self) -> None:
        partial = self._path.with_suffix(f".{os.getpid()}.partial")
        try:
            torch.save(
                {
                    "weights": {name: p.detach() for name, p in self._trained.items()},
                    "optimizer": self._optimizer.state_dict(),
                    "state": vars(self.state),
                },
                partial,
            )
            partial.rename(self._path)
        except (OSError, RuntimeError) as error:
            raise EdgespecError(f"writing {self._path} failed ({error})") from error

    def resume(self) -> bool:
        """Continue from what `save` wrote. Return True if there was anything."""
        if not self._path.is_file():
            return False
        try:
            saved: dict[str, Any] = torch.load(self._path, map_location=self._device)
            with torch.no_grad():
                for name, parameter in self._trained.items():
                    parameter.copy_(saved["weights"][name])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.state = State(**saved["state"])
        except _DAMAGED as error:
            raise EdgespecError(
                f"{self._path} cannot be read ({type(error).__name__}); remove it to train again"
            ) from error
        return True


@torch.no_grad()
def agreement(draft: Decoder, samples: Sequence[Sample], kept: Tensor | None = None) -> float:
    """Return the fraction of answer tokens at which the arg-max is the target's; 0 without any."""
    device, right, count = draft.output.device, 0, 0
    order = sorted(samples, key=lambda sample: len(sample.ids))
    words = draft.output if kept is None else draft.output[kept]
    with autocast(device):
        for start in range(0, len(order), _EVALUATED_SAMPLES):
            part = batch(order[start : start + _EVALUATED_SAMPLES], device, answers=True)
            logits = draft.features(part.ids)[part.learn] @ words.T
            named = logits.argmax(-1)
            named = named if kept is None else kept[named]
            right += int((named == part.candidates[part.targets[:, 0]]).sum())
            count += len(named)
    return right / max(count, 1)
