"""`edgespec serve` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.lab.processes import STOP_TIMEOUT_S, cores, word_after
from edgespec.errors import EdgespecError


@dataclass(frozen=True)
class Server:
    url: str
    """Without `/v1`."""
    pid: int
    log: list[str]


@contextmanager
def server(bundle: Path, endpoint: str, *options: str) -> Iterator[Server]:
    """A server on the device's core, ended with the block. Raises `EdgespecError` if it does not
    start."""
    pin = f"import os; os.sched_setaffinity(0, {{{cores()[0]}}}); from cli.main import main; main()"
    command = [
        sys.executable, "-c", pin, "serve", str(bundle), "--connect", endpoint, "--port", "0",
        "--threads", "1", *options,
    ]  # fmt: skip
    environment = {name: text for name, text in os.environ.items() if name != "EDGESPEC_API_KEY"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    log: list[str] = []
    rest = threading.Thread(target=log.extend, args=[process.stderr], daemon=True)
    try:
        for line in process.stderr:
            log.append(line)
            if line.startswith("serving "):
                rest.start()
                yield Server(word_after(line, " at").removesuffix("/v1"), process.pid, log)
                return
        raise EdgespecError(f"the server did not start: {''.join(log[-3:]).strip()}")
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if rest.ident:
            rest.join()
        process.stderr.close()
