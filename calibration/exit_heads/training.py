"""Training exit heads: one pass of the frozen target, and the adapters of all candidates.

The target's pass is the most expensive part, so its states are used several times: it runs over a
window of answers, whose positions are shuffled and trained on in small batches, `laps` times. The
loss runs over the target's likeliest tokens in the batch (about 4 000 of SmolLM2's 49 152).

The loss is the mean of two: the Kullback-Leibler divergence from the target's likeliest tokens, and
the cross-entropy of its arg-max. Agreement at layer 20 of SmolLM2-135M, from 24 000 tokens (4 laps,
and 12): divergence alone 0.411, arg-max alone 0.441 and 0.484, both 0.434 and 0.511. A hint
predicts the arg-max; the divergence keeps an adapter from memorising answers. In such a short run,
half the batch gains 0.01 and twice the rate 0.02.

A killed run continues from its last saved window, at most `SAVE_S` and one window of work back.
Windows and batches are a function of the settings, so the result is the same.
"""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.corpus import Sample
from calibration.decoder import Decoder, autocast
from calibration.distillation.batches import batch, batches
from calibration.exit_heads.exits import RANK, replace, untrained
from edgespec.errors import EdgespecError
from edgespec.progress import Advance

SAVE_S = 30.0
EVALUATE_S = 60.0
_PROBE_TOKENS = 512
"""Held-out positions for measuring agreement during training."""
_WARM_UP_STEPS = 10
_RATE_HIDDEN = 576
"""Hidden size up to which the learning rate is `ExitSettings.rate`."""
_UNREADABLE = (
    OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError,
)  # fmt: skip
_MAX_GRADIENT_NORM = 1.0


class ExitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a run. The names are stored with unfinished work."""

    layers: tuple[int, ...]
    """Layers with a head, ascending."""
    tokens: int
    """Answer tokens to train on."""
    seed: int = 0
    rank: int = RANK
    laps: int = 4
    """Number of times that the states of a window are used."""
    window: int = 4096
    """Approximate answer positions of a window."""
    positions: int = 512
    """Positions of a step."""
    rate: float = 1e-2
    """Learning rate up to a hidden size of `_RATE_HIDDEN`; in inverse proportion for larger ones
    (as in µP, arXiv 2203.03466)."""


class _Window(NamedTuple):
    """States at n positions, and the target's likeliest tokens there."""

    states: dict[int, Tensor]
    """[n, hidden] by layer."""
    tokens: Tensor
    """[n, top] int64: the target's likeliest tokens, descending."""
    probabilities: Tensor
    """[n, top] float32: their probabilities."""


class ExitTrainer:
    """Trains `heads`. The existing `folder` holds the checkpoint of the training."""

    def __init__(self, decoder: Decoder, settings: ExitSettings, folder: Path) -> None:
        self.heads = untrained(decoder, settings.layers, settings.rank, settings.seed)
        self.done = 0
        """Windows already trained on."""
        self._decoder = decoder.requires_grad_(False)
        self._settings = settings
        self._path = folder / "exits.pt"
        self._rate = settings.rate * min(1.0, _RATE_HIDDEN / decoder.architecture.hidden)
        self._optimizer = torch.optim.AdamW(
            self.heads.parameters(), lr=self._rate, betas=(0.9, 0.95), weight_decay=0.0
        )

    def windows(self, samples: Sequence[Sample]) -> list[list[list[Sample]]]:
        """Return all windows of the run, each a list of batches of samples."""
        random = np.random.default_rng(self._settings.seed)
        found: list[list[list[Sample]]] = []
        room = 0
        for group in batches(samples, self._settings.window // 2, random):
            if room <= 0:
                found.append([])
                room = self._settings.window
            found[-1].append(group)
            room -= sum(len(sample.ids) - 1 - sample.answer for sample in group)
        return found

    def run(
        self,
        windows: Sequence[Sequence[Sequence[Sample]]],
        held_out: Sequence[Sample],
        advance: Advance,
    ) -> None:
        """Train on the remaining windows. Save every `SAVE_S` seconds and at the end.

        `advance` counts windows and receives the held-out agreement.
        """
        advance(self.done)
        saved = evaluated = time.monotonic()
        for groups in windows[self.done :]:
            self._train(self._states(groups), len(windows))
            self.done += 1
            note = ""
            if time.monotonic() - evaluated > EVALUATE_S:
                note = self._note(held_out)
                evaluated = time.monotonic()
            if time.monotonic() - saved > SAVE_S or self.done == len(windows):
                self.save()
                saved = time.monotonic()
            advance(1, note)

    @torch.no_grad()
    def _states(self, groups: Sequence[Sequence[Sample]]) -> _Window:
        states: dict[int, list[Tensor]] = {layer: [] for layer in self._settings.layers}
        tokens, probabilities = [], []
        device = self._decoder.output.device
        with autocast(device):
            for group in groups:
                part = batch(group, device, answers=True)
                _, kept = self._decoder.hidden(part.ids, keep=states)
                for layer, found in states.items():
                    found.append(kept[layer][part.learn].bfloat16())
                tokens.append(part.candidates[part.targets])
                probabilities.append(part.probabilities)
        return _Window(
            {layer: torch.cat(found) for layer, found in states.items()},
            torch.cat(tokens),
            torch.cat(probabilities),
        )

    def _train(self, window: _Window, windows: int) -> None:
        s, n = self._settings, len(window.tokens)
        steps = max(1, round(n / s.positions))
        random = np.random.default_rng([s.seed, self.done])
        for lap in range(s.laps):
            order = torch.from_numpy(random.permutation(n)).to(window.tokens.device)
            for step, chosen in enumerate(order.tensor_split(steps)):
                over = (self.done + (lap + step / steps) / s.laps) / windows
                first = self.done == 0 and lap == 0
                self._step(window, chosen, over, step + 1 if first else _WARM_UP_STEPS)

    def _step(self, window: _Window, chosen: Tensor, over: float, warm: int) -> None:
        """Train on the `chosen` positions.

        `over` is the completed fraction of the run, `warm` the number of the step during warm-up.
        """
        fall = 0.02 + 0.98 * (1 + math.cos(math.pi * over)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * fall * min(1.0, warm / _WARM_UP_STEPS)
        self._optimizer.zero_grad(set_to_none=True)
        candidates, places = torch.unique(window.tokens[chosen], return_inverse=True)
        with autocast(chosen.device):
            rows = self._decoder.output[candidates]
            for layer in self._settings.layers:  # one by one, because logits fill the memory
                hidden = self.heads[str(layer)](window.states[layer][chosen])
                logits = functional.linear(self._decoder.model.norm(hidden), rows)
                value = _loss(logits, places, window.probabilities[chosen])
                value.backward()  # type: ignore[no-untyped-call]
        for head in self.heads.values():
            nn.utils.clip_grad_norm_(head.parameters(), _MAX_GRADIENT_NORM)
        self._optimizer.step()

    @torch.no_grad()
    def agreement(self, held_out: Sequence[Sample]) -> dict[int, float]:
        """Measure agreement by layer, on the first held-out positions and the full vocabulary."""
        probe: list[Sample] = []
        count = 0
        for sample in held_out:
            if count < _PROBE_TOKENS:
                probe.append(sample)
                count += len(sample.ids) - 1 - sample.answer
        window = self._states([[sample] for sample in probe])
        found = {}
        with autocast(window.tokens.device):
            for layer, states in window.states.items():
                features = self._decoder.model.norm(self.heads[str(layer)](states))
                named = self._decoder.logits(features).argmax(-1)
                found[layer] = float((named == window.tokens[:, 0]).float().mean())
        return found

    def _note(self, held_out: Sequence[Sample]) -> str:
        found = self.agreement(held_out)
        shown = sorted(found)[len(found) // 3 :: max(1, len(found) // 3)]
        return "agreement " + ", ".join(f"{found[layer]:.2f} at {layer}" for layer in shown)

    def save(self) -> None:
        content = io.BytesIO()
        torch.save(
            {
                "heads": self.heads.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "done": self.done,
            },
            content,
        )
        replace(self._path, content.getvalue())

    def resume(self) -> bool:
        """Continue from what `save` wrote. Return True if there was anything."""
        if not self._path.is_file():
            return False
        try:
            saved: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
            self.heads.load_state_dict(saved["heads"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.done = int(saved["done"])
        except _UNREADABLE as error:
            raise EdgespecError(
                f"{self._path} cannot be read ({type(error).__name__}); remove it to train again"
            ) from error
        return True


def _loss(logits: Tensor, places: Tensor, probabilities: Tensor) -> Tensor:
    """Return the module's loss, a scalar, from logits [n, candidates]."""
    logprobs = functional.log_softmax(logits.float(), dim=-1).gather(1, places)
    return (-(probabilities * logprobs).sum(-1) - logprobs[:, 0]).mean() / 2
