"""Device and cloud as real processes on this machine, each on its own core if there are two."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgespec.errors import EdgespecError
from edgespec.telemetry import AnswerStats

START_TIMEOUT = 120.0


def cores() -> tuple[int, int]:
    """The device's core and the cloud's; the same where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keeps this process on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _command(core: int, *arguments: str) -> list[str]:
    pin = f"import os; os.sched_setaffinity(0, {{{core}}}); from cli.main import main; main()"
    return [sys.executable, "-c", pin, *arguments]


def resident_mb(pid: int) -> float:
    """Memory of a process that lies in RAM, in 10^6 bytes; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def cloud(bundle: Path, *options: str) -> Iterator[str]:
    """`edgespec cloud-run` on a free port of loopback; yields its endpoint, stops it at the end.

    Raises `EdgespecError` with the cloud's own words if it does not come up.
    """
    with cloud_process(bundle, *options) as (endpoint, _):
        yield endpoint


@contextmanager
def cloud_process(
    bundle: Path, *options: str, said: list[str] | None = None
) -> Iterator[tuple[str, int]]:
    """The same; yields endpoint and process id. Its log lines are put into `said` as they come.

    Raises `EdgespecError` with the cloud's own words if it does not come up.
    """
    command = _command(
        cores()[1], "cloud-run", str(bundle), "--bind", "tcp://127.0.0.1:*", "--threads", "1",
        *options,
    )  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    watchdog = threading.Timer(START_TIMEOUT, process.kill)
    watchdog.start()
    said = [] if said is None else said
    rest = threading.Thread(target=said.extend, args=[process.stderr], daemon=True)
    try:
        for line in process.stderr:
            said.append(line)
            if "listening on" in line:
                watchdog.cancel()
                rest.start()
                yield told(line, "listening on"), process.pid
                return
        raise EdgespecError(f"the cloud did not start: {''.join(said[-3:]).strip()}")
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if rest.ident:
            rest.join()
        process.stderr.close()


def told(line: str, words: str) -> str:
    """The word that follows `words` in a log line of either format."""
    return line.partition(f"{words} ")[2].split()[0].partition('"')[0]


def edge(
    bundle: Path, endpoint: str, prompt: str, options: Sequence[str], *, show: bool = False
) -> AnswerStats:
    """`edgespec edge-run --json` for one chat prompt; `show` lets its text through."""
    words = edge_words(bundle, endpoint, prompt, ["--chat", *options])
    return answer_of(_command(cores()[0], *words), show=show)


def edge_words(bundle: Path, endpoint: str, prompt: str, options: Sequence[str]) -> list[str]:
    """What follows `edgespec` for one prompt, on one thread, with figures as JSON."""
    return [
        "edge-run", str(bundle), "--connect", endpoint, "--prompt", prompt, "--threads", "1",
        "--json", *options,
    ]  # fmt: skip


def answer_of(
    command: Sequence[str], *, show: bool = False, env: Mapping[str, str] | None = None
) -> AnswerStats:
    """Runs a device. Raises `EdgespecError` with its own words if it fails."""
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
