"""`edgespec verify`: answers in every mode, compared with those of the target alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_runtime.client import Client
from edge_runtime.connection import chat_tokens
from edge_runtime.difference import Difference, first_difference, gap_of
from edgespec.config import EdgeSettings, Mode, Request, Tactics, usable_cores
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.progress import Advance, progress
from edgespec.sampling import Sampling
from edgespec.text import Codec
from engines.alone import write_alone
from engines.backends import DEFAULT, open_target
from engines.base import Engine
from engines.machine.arithmetic import fingerprint

PROMPTS = (
    "The sky is blue because",
    "A robot should check three things before it opens a door. First,",
    "def add(a, b):\n",
    "One, two, three, four,",
)
"""Prompts of a verification without a file."""
SAMPLED_TEMPERATURE, SAMPLED_TOP_P = 0.8, 0.95
ALONE_MODE: Mode = "cloud"
"""Mode in which the cloud's target decodes alone."""


class Prompt(msgspec.Struct):
    """One line of a file of prompts. Other keys are ignored."""

    prompt: str


@dataclass(frozen=True)
class VerifySettings:
    prompts: Path | None = None
    """File of prompts, JSON lines; None: `PROMPTS`."""
    chat: bool = False
    """Apply the chat template to each prompt."""
    max_tokens: int = 64
    seed: int = 0
    """Seed of the sampled answers."""
    local: bool = False
    """Compare with the target on this machine instead of the cloud's target alone."""


class Written(NamedTuple):
    """An answer's tokens, and how many of them were drafted."""

    tokens: Sequence[int]
    drafted: int = 0


@dataclass(frozen=True)
class Check:
    """One answer of one mode, compared with the target alone."""

    mode: str
    prompt: int
    """Number of the prompt, from 1."""
    sampled: bool
    """True if the answer was sampled, False if it is greedy."""
    tokens: int
    drafted: int
    """Tokens of the answer that the device or the cloud had drafted."""
    difference: Difference | None
    """None: identical."""


@dataclass(frozen=True)
class Proof:
    """Results of a verification."""

    checks: Sequence[Check]
    cloud: str
    """Arithmetic of the cloud; empty if it is unknown."""
    local: str
    """Arithmetic of the target on this machine; empty if the reference is the cloud's target."""

    @property
    def identical(self) -> bool:
        return all(check.difference is None for check in self.checks)


def verify(bundle: Bundle, edge: EdgeSettings, settings: VerifySettings) -> Proof:
    """Writes every answer in every mode and compares it with that of the target alone.

    Raises `UsageError` for bad prompts or a bundle without the target that `settings.local` needs,
    and `LinkError` if the cloud cannot be reached.
    """
    codec = Codec(bundle)
    texts = read_prompts(settings.prompts)
    engine = _local_target(bundle) if settings.local else None
    with Client(bundle, replace(edge, mode=ALONE_MODE), codec=codec) as client:
        welcome = client.welcome
    modes = _modes(edge, cloud_draft=welcome.draft_ms > 0)
    requests = [
        request for text in texts for request in _requests(codec, text, settings, welcome.context)
    ]
    verification = _Verification(bundle, codec, requests, engine)
    total = (len(modes) + (engine is not None)) * len(requests)
    with progress("verifying", total, unit="answers") as advance:
        checks = verification.run(modes, advance)
    local = fingerprint(DEFAULT, bundle.manifest.target.precisions) if engine else ""
    return Proof(checks, welcome.arithmetic, local)


class _Verification:
    """The same requests, written in every mode and compared."""

    def __init__(
        self, bundle: Bundle, codec: Codec, requests: Sequence[Request], engine: Engine | None
    ) -> None:
        """`engine` is the target on this machine; None: the reference is the cloud's."""
        self._bundle = bundle
        self._codec = codec
        self._requests = requests
        self._engine = engine

    def run(self, modes: Mapping[str, EdgeSettings], advance: Advance) -> list[Check]:
        """Returns the checks of all modes. The mode `ALONE_MODE` is checked only where the
        reference is the target on this machine."""
        references = self._write_alone(self._engine, advance) if self._engine else None
        checks = []
        for name, mode in modes.items():
            answers = self._write(mode, advance)
            if references is None:  # the first mode is the cloud's target alone
                references = [answer.tokens for answer in answers]
                continue
            for number, (reference, answer) in enumerate(zip(references, answers, strict=True)):
                sampled = not self._requests[number].sampling.greedy
                difference = self._compare(number, reference, answer.tokens)
                length = len(answer.tokens)
                checks.append(
                    Check(name, number // 2 + 1, sampled, length, answer.drafted, difference)
                )
        return checks

    def _write(self, mode: EdgeSettings, advance: Advance) -> list[Written]:
        answers = []
        with Client(self._bundle, mode, codec=self._codec) as client:
            for request in self._requests:
                completion = client.start(request)
                drafted = sum(piece.origin != "target" for piece in completion)
                answers.append(Written(completion.stats.token_ids, drafted))
                advance(1)
        return answers

    def _write_alone(self, engine: Engine, advance: Advance) -> list[Sequence[int]]:
        answers: list[Sequence[int]] = []
        ends = self._bundle.manifest.text.end_ids
        for request in self._requests:
            answers.append(
                write_alone(engine, request.prompt, request.max_tokens, request.sampling, ends)
            )
            advance(1)
        return answers

    def _compare(
        self, number: int, reference: Sequence[int], found: Sequence[int]
    ) -> Difference | None:
        difference = first_difference(reference, found, self._codec)
        if difference is None or self._engine is None:
            return difference
        request = self._requests[number]
        gap = gap_of(difference, request.prompt, reference, request.sampling, self._engine)
        precision = self._bundle.manifest.target.precisions.layers
        return replace(difference, gap_logits=gap, precision=precision)


def _modes(edge: EdgeSettings, *, cloud_draft: bool) -> dict[str, EdgeSettings]:
    """The target alone in the cloud, and then every way to write an answer with drafts."""
    modes = {
        ALONE_MODE: replace(edge, mode=ALONE_MODE),
        "edge": replace(edge, mode="edge"),
        "lockstep": replace(edge, mode="edge", tactics=Tactics("none")),
    }
    if cloud_draft:
        modes["cloud-draft"] = replace(edge, mode="cloud-draft")
    return {**modes, "auto": replace(edge, mode="auto")}


def _requests(codec: Codec, text: str, settings: VerifySettings, context: int) -> list[Request]:
    """The greedy and the sampled request for a prompt. Both fit into `context` positions."""
    if settings.chat:
        tokens = chat_tokens(codec, [{"role": "user", "content": text}])
    else:
        tokens = codec.encode(text)
    if not 0 < len(tokens) < context:
        raise UsageError(
            f"a prompt has {len(tokens)} tokens and may have 1 to {context - 1}: {text[:40]!r}"
        )
    sampled = Sampling(SAMPLED_TEMPERATURE, SAMPLED_TOP_P, seed=settings.seed)
    most = min(settings.max_tokens, context - len(tokens))
    return [Request(tuple(tokens), most, sampling) for sampling in (Sampling(), sampled)]


def _local_target(bundle: Bundle) -> Engine:
    if not bundle.path("target").is_dir():
        raise UsageError(
            f"{bundle.folder} has no target files; copy the cloud's bundle here, or run without "
            "--local"
        )
    return open_target(bundle, DEFAULT, usable_cores())


def read_prompts(path: Path | None) -> list[str]:
    """Returns the prompts of a file of JSON lines; the built-in ones for None.

    Raises `UsageError` that names the line of an invalid prompt, or for a file that cannot be read
    or has no prompts.
    """
    if path is None:
        return list(PROMPTS)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    prompts = [_prompt(line, path, n) for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f'{path} has no prompts; write lines as {{"prompt": "…"}}')
    return prompts


def _prompt(line: str, path: Path, number: int) -> str:
    try:
        return msgspec.json.decode(line, type=Prompt).prompt
    except msgspec.DecodeError as error:
        raise UsageError(
            f'{path}, line {number} is no prompt ({error}); write {{"prompt": "…"}}'
        ) from error
