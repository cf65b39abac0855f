"""`edgespec bench arm`: answers of an emulated aarch64 device and an x86-64 cloud.

The device is the lean package under the arm64 Python and drafts with the graph for older ONNX
Runtimes. Target and cloud run on this machine. Device and cloud take turns (`--pre-draft none`):
emulation slows the device down tenfold, and a cloud that decodes on its own would leave it nothing
to draft. Times are meaningless and not reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from bench.arm.emulator import BOARDS, Board, Emulator, emulator, run
from bench.arm.logits import draft_logits
from bench.arm.packages import install
from bench.lab.builtin import builtin_bundle
from bench.lab.processes import answer_of, cloud, edge_words
from bench.lab.tables import empty_table
from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats
from edgespec.text import Codec
from engines.alone import write_alone
from engines.onnxruntime_backend.engine import open_target

PROFILE = "cpu-compat"
PROMPT = "The days of the week are Monday, Tuesday,"
"""Prompt without a chat template, whose tokens would take most of the time."""


class BoardResult(msgspec.Struct, frozen=True):
    """Result of one emulated board."""

    board: str
    doctor: dict[str, Any]
    """JSON of `edgespec doctor` on the board."""
    answer: AnswerStats
    identical: bool
    """True if the answer has the tokens that the target alone writes."""
    logit_difference: float
    """Largest difference of the draft's logits after the prompt between ONNX Runtime on the board
    and on this machine, with the same graph."""


@dataclass(frozen=True)
class EmulatedDevice:
    """edgespec on an emulated board."""

    machine: Emulator
    packages: Path
    board: Board

    def doctor(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self._run("edgespec", "doctor", "--json"))
        return found

    def answer(self, bundle: Bundle, endpoint: str, max_tokens: int) -> AnswerStats:
        options = [
            "--mode", "edge", "--drafter", PROFILE, "--pre-draft", "none", "--draft-length", "3",
            "--max-tokens", str(max_tokens),
        ]  # fmt: skip
        words = edge_words(bundle.folder, endpoint, PROMPT, options)
        command = self.machine.python(self.board, "-m", "edgespec", *words)
        return answer_of(command, env=self.machine.environment(self.packages))

    def logits(self, bundle: Bundle, ids: Sequence[int]) -> npt.NDArray[Any]:
        """[vocabulary] logits of the draft after a prompt."""
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/logits.npy"
            self._run("bench.arm.logits", str(bundle.folder), PROFILE, file, *map(str, ids))
            found: npt.NDArray[Any] = np.load(file)
            return found

    def _run(self, module: str, *arguments: str) -> str:
        command = self.machine.python(self.board, "-m", module, *arguments)
        return run(command, f"{module} failed", self.machine.environment(self.packages))


def check(boards: Sequence[str], max_tokens: int, *, as_json: bool) -> None:
    """Runs the boards and prints the results. Raises `EdgespecError` if an answer differs from the
    target's own, if no draft token was accepted, or if a board is not recognised."""
    console = Console(stderr=True)
    console.print("Debian's arm64 Python, and the device's package for it ...")
    machine = emulator()
    packages = install(machine)
    bundle = builtin_bundle(PROFILE)
    codec = Codec(bundle)
    ids = codec.encode(PROMPT)
    ends = bundle.manifest.text.end_ids
    alone = write_alone(open_target(bundle, 1), ids, max_tokens, Sampling(), ends)
    logits = draft_logits(bundle, PROFILE, ids)
    results = []
    with cloud(bundle.folder, "--no-hints") as endpoint:
        for name in boards:
            console.print(f"{name}, emulated, drafts for {len(alone)} tokens ...")
            device = EmulatedDevice(machine, packages, BOARDS[name])
            machine.become(device.board)
            answer = device.answer(bundle, endpoint, max_tokens)
            difference = float(np.abs(device.logits(bundle, ids) - logits).max())
            same = answer.token_ids == alone
            results.append(BoardResult(name, device.doctor(), answer, same, difference))
    Console(highlight=False).print(_table(results))
    if as_json:
        print(msgspec.json.encode(results).decode())
    confirm(results)


def confirm(results: Sequence[BoardResult]) -> None:
    """Raises `EdgespecError` for the first result that is not as expected."""
    for result in results:
        if not result.identical:
            raise EdgespecError(f"{result.board}: the answer differs from the target's own")
        if not 0 < result.answer.accepted <= result.answer.drafted:
            raise EdgespecError(f"{result.board}: the device drafted nothing that was accepted")
        if (hardware := result.doctor["hardware"]) != result.board:
            taken = hardware or "no known hardware"
            raise EdgespecError(f"{result.board}: the doctor takes the board for {taken}")


def _table(results: Sequence[BoardResult]) -> Table:
    table = empty_table("emulated boards")
    for header in ("", *(result.board for result in results)):
        table.add_column(header)

    def row(name: str, values: Sequence[object]) -> None:
        table.add_row(name, *map(str, values))

    found = [result.doctor for result in results]
    answers = [result.answer for result in results]
    row("CPU", [doctor["processor"]["model"] for doctor in found])
    row("ONNX Runtime", [f"{doctor['onnxruntime']}, {doctor['architecture']}" for doctor in found])
    row("doctor recognises", [doctor["hardware"] for doctor in found])
    row("tokens", [answer.tokens for answer in answers])
    row("drafted on the device", [answer.drafted for answer in answers])
    row("accepted", [answer.accepted for answer in answers])
    row("draft logits differ from x86 by", [f"{result.logit_difference:.2g}" for result in results])
    row("identical to the target alone", ["yes" if r.identical else "no" for r in results])
    return table
