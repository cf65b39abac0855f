"""Settings of `edgespec bench step`, and the steps that it measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from bench.lab.random_checkpoint import MODELS
from edgespec.config import usable_cores

Role = Literal["draft", "llamacpp draft", "target"]
"""A draft in ONNX Runtime, the same in edgespec's back end for llama.cpp, and a target."""
ROLES: tuple[Role, ...] = ("draft", "llamacpp draft", "target")
Precision = Literal["fp32", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")

BUILTIN = "smollm2-135m"
"""The built-in target. All other shapes have random weights."""
SHAPES: MappingProxyType[str, dict[str, Any] | None] = MappingProxyType(
    {
        BUILTIN: None,
        "qwen3-0.6b": MODELS["qwen3-0.6b"],
        "llama-3.2-1b": MODELS["llama-3.2-1b"],
        "tiny": MODELS["1b"]
        | {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
            "max_position_embeddings": 1024,
        },
    }
)
"""`config.json` by shape."""
GENERATED_TOKENS = 64
"""Tokens that llama.cpp generates in a run, one a step."""
DEPTH_TOKENS = 64
"""Tokens that llama.cpp has read before them."""
PAST_TOKENS = DEPTH_TOKENS + GENERATED_TOKENS // 2
"""Cached positions of every row of a step: the mean over llama.cpp's run."""


class StepShape(NamedTuple):
    rows: int
    tokens: int
    """New tokens of each row."""
    past_tokens: int = PAST_TOKENS
    """Cached positions of each row."""


ONE_TOKEN = StepShape(1, 1)
ONE_TOKEN_BLOCKS = 4
"""Length of a block of one-token steps of one row, relative to that of other steps."""
PROMPT_STEPS = 2


class Plan(NamedTuple):
    """Steps and repetitions."""

    rows: tuple[int, ...] = (1, 4, 16)
    tokens: tuple[int, ...] = (1, 2, 4, 8)
    prompt_tokens: int = 256
    turns: int = 5
    block_steps: int = 16
    """Consecutive steps of one row in a turn; fewer for several rows, more for one token."""
    llama_repeats: int = 2
    """Runs of llama.cpp in a turn."""

    @property
    def prompt(self) -> StepShape:
        return StepShape(1, self.prompt_tokens, 0)

    @property
    def shapes(self) -> list[StepShape]:
        steps = [StepShape(rows, tokens) for rows in self.rows for tokens in self.tokens]
        return [*steps, self.prompt]

    def steps_of(self, shape: StepShape) -> int:
        """Consecutive steps of a shape in a turn."""
        if shape == self.prompt:
            return PROMPT_STEPS
        if shape == ONE_TOKEN:
            return ONE_TOKEN_BLOCKS * self.block_steps
        return max(2, self.block_steps // shape.rows)


FULL = Plan()
QUICK = Plan(rows=(1, 4), tokens=(1, 4), turns=2, block_steps=4, llama_repeats=1)


@dataclass(frozen=True)
class StepSettings:
    shape: str = BUILTIN
    """One of `SHAPES`."""
    precisions: tuple[Precision, ...] = PRECISIONS
    threads: tuple[int, ...] = ()
    """Empty: one, two, four and so on, up to the cores."""
    quick: bool = False
    llama_bench: Path | None = None
    """llama.cpp's program `llama-bench`; None: not compared."""
    plot: Path | None = None

    @property
    def plan(self) -> Plan:
        return QUICK if self.quick else FULL

    @property
    def thread_counts(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.threads))) or default_threads(usable_cores())


def default_threads(cores: int) -> tuple[int, ...]:
    """The powers of two below `cores`, and `cores`."""
    return (*(1 << bit for bit in range(cores.bit_length()) if 1 << bit < cores), cores)
