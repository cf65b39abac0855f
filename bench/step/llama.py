"""llama.cpp on the same weights: its own programs `llama-quantize` and `llama-bench`.

The output of `llama-bench -o json` is a list of tests. A test reads `n_prompt` tokens in one batch,
or generates `n_gen` tokens one by one, after `n_depth` tokens; `samples_ns` are the times of its
repetitions. Source: tools/llama-bench/llama-bench.cpp of llama.cpp.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec

from bench.step.settings import DEPTH_TOKENS, GENERATED_TOKENS, Plan, Precision, StepShape
from edgespec.errors import EdgespecError, UsageError

QUANTIZE = "llama-quantize"
TYPES: Mapping[Precision, str] = MappingProxyType({"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"})
"""llama.cpp's types by precision. Its matrices have blocks of 32, as edgespec's have."""
TIMEOUT_S = 3600.0


class LlamaTest(msgspec.Struct, frozen=True):
    """One test in the output of `llama-bench`."""

    n_threads: int
    n_prompt: int
    n_gen: int
    n_depth: int
    samples_ns: list[int]
    model_size: int
    """Bytes."""
    build_number: int = 0
    build_commit: str = ""

    @property
    def build(self) -> str:
        """Number and commit; a build without git knows neither."""
        known = self.build_number > 0
        return f"build {self.build_number} ({self.build_commit})" if known else "unnumbered build"

    @property
    def shape(self) -> StepShape:
        """The step of edgespec that does the same."""
        if self.n_gen:
            return StepShape(1, 1, self.n_depth + self.n_gen // 2)
        past = self.n_depth and self.n_depth + GENERATED_TOKENS // 2
        return StepShape(1, self.n_prompt, past)

    @property
    def ms(self) -> float:
        """Median milliseconds of a step."""
        return statistics.median(self.samples_ns) / 1e6 / (self.n_gen or 1)


def parsed(output: str) -> list[LlamaTest]:
    """The tests in the output of `llama-bench -o json`. Raises `EdgespecError`."""
    try:
        tests = msgspec.json.decode(output, type=list[LlamaTest])
    except msgspec.DecodeError as error:
        raise EdgespecError(
            f"the output of llama-bench is not what this bench reads ({error}); "
            "build llama.cpp as docs/engines.md says"
        ) from error
    if not tests or not all(test.samples_ns for test in tests):
        raise EdgespecError("llama-bench measured nothing; run it by hand to see why")
    return tests


class LlamaPrograms:
    """The programs of one build of llama.cpp."""

    def __init__(self, bench: Path) -> None:
        """`bench` is the path of `llama-bench`; `llama-quantize` is beside it.

        Raises `UsageError` if one of them is missing.
        """
        self._bench, self._quantize = bench, bench.with_name(QUANTIZE)
        if not _runs(self._bench):
            raise UsageError(
                f"--llama-bench {bench} is no program; docs/engines.md says how to build llama.cpp"
            )
        if not _runs(self._quantize):
            raise UsageError(
                f"{self._quantize} is missing, which makes the weights for {bench.name}; "
                f"build {QUANTIZE} too"
            )

    def quantise(self, weights: Path, out: Path, precision: Precision, threads: int) -> None:
        """Writes a GGUF file in another precision. Raises `EdgespecError` if that fails."""
        command = [self._quantize, "--allow-requantize", weights, out, TYPES[precision], threads]
        _output(command)

    def measure(self, model: Path, threads: int, plan: Plan) -> list[LlamaTest]:
        """Measures the plan's steps of one row, and its prompt. Raises `EdgespecError`."""
        tokens = ",".join(str(count) for count in plan.tokens if count > 1) or "0"
        return [
            *self._tests(model, threads, plan, tokens, GENERATED_TOKENS, DEPTH_TOKENS),
            *self._tests(model, threads, plan, str(plan.prompt_tokens), 0, 0),
        ]

    def _tests(
        self, model: Path, threads: int, plan: Plan, prompts: str, generated: int, depth: int
    ) -> list[LlamaTest]:
        command = [self._bench, "-m", model, "-t", threads, "-r", plan.llama_repeats, "-o", "json"]
        # Layers on a GPU: none, as for edgespec.
        sizes = ["-p", prompts, "-n", generated, "-d", depth, "-ngl", 0]
        return parsed(_output([*command, *sizes]))


def _runs(program: Path) -> bool:
    return program.is_file() and os.access(program, os.X_OK)


def _output(command: Sequence[object]) -> str:
    """Standard output of a program. Raises `EdgespecError` with its last line if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise EdgespecError(f"{words[0]} did not end within {TIMEOUT_S:.0f} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise EdgespecError(f"{words[0]} failed with exit code {done.returncode}: {last}")
    return done.stdout
