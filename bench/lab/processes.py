"""Device and cloud as real processes on this machine, each on its own core if there are two."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgespec.errors import EdgespecError
from edgespec.telemetry import AnswerStats

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
BYTES_PER_KIB = 1024


@dataclass(frozen=True)
class CloudProcess:
    """A running `edgespec cloud-run`."""

    endpoint: str
    pid: int
    log: list[str]
    """Its log lines, as they come."""

    def logged(self, words: str) -> str:
        """The word that follows `words` in the log."""
        return next(word_after(line, words) for line in self.log if words in line)


def cores() -> tuple[int, int]:
    """The device's core and the cloud's; the same where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this process on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def resident_mb(pid: int) -> float:
    """Resident memory of a process in 10^6 bytes; 0 where the system does not report it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    kib = sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return kib * BYTES_PER_KIB / 1e6


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; 0 where the system does not report it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def cloud(bundle: Path, *options: str) -> Iterator[str]:
    """The endpoint of a `cloud_process`."""
    with cloud_process(bundle, *options) as process:
        yield process.endpoint


@contextmanager
def cloud_process(bundle: Path, *options: str) -> Iterator[CloudProcess]:
    """`edgespec cloud-run` on the cloud's core and a free port of loopback, ended with the block.

    Raises `EdgespecError` with the cloud's last log lines if it does not start.
    """
    command = _command(
        cores()[1], "cloud-run", str(bundle), "--bind", "tcp://127.0.0.1:*", "--threads", "1",
        *options,
    )  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    log: list[str] = []
    rest = threading.Thread(target=log.extend, args=[process.stderr], daemon=True)
    try:
        for line in process.stderr:
            log.append(line)
            if "listening on" in line:
                watchdog.cancel()
                rest.start()
                yield CloudProcess(word_after(line, "listening on"), process.pid, log)
                return
        raise EdgespecError(f"the cloud did not start: {''.join(log[-3:]).strip()}")
    finally:
        watchdog.cancel()
        _stop(process)
        if rest.ident:
            rest.join()
        process.stderr.close()


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def word_after(line: str, words: str) -> str:
    """The word that follows `words` in a log line, in text or JSON."""
    return line.partition(f"{words} ")[2].split()[0].partition('"')[0]


def edge(
    bundle: Path, endpoint: str, prompt: str, options: Sequence[str], *, show: bool = False
) -> AnswerStats:
    """`edgespec edge-run --json` for one chat prompt; `show` passes its text on."""
    words = edge_words(bundle, endpoint, prompt, ["--chat", *options])
    return answer_of(_command(cores()[0], *words), show=show)


def edge_words(bundle: Path, endpoint: str, prompt: str, options: Sequence[str]) -> list[str]:
    """The arguments of `edgespec` for one prompt, on one thread, with figures as JSON."""
    return [
        "edge-run", str(bundle), "--connect", endpoint, "--prompt", prompt, "--threads", "1",
        "--json", *options,
    ]  # fmt: skip


def answer_of(
    command: Sequence[str], *, show: bool = False, env: Mapping[str, str] | None = None
) -> AnswerStats:
    """Run a device. Raises `EdgespecError` with its last log line if it fails."""
    done = subprocess.run(
        command,
        stdout=None if show else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    lines = done.stderr.strip().splitlines()
    if done.returncode or not lines:
        raise EdgespecError(f"the device failed: {lines[-1] if lines else done.returncode}")
    return msgspec.json.decode(lines[-1], type=AnswerStats, strict=False)


def _command(core: int, *arguments: str) -> list[str]:
    """`edgespec` with these arguments, on one core."""
    pin = f"import os; os.sched_setaffinity(0, {{{core}}}); from cli.main import main; main()"
    return [sys.executable, "-c", pin, *arguments]
