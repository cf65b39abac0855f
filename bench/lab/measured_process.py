"""Run a command and print what it used: `python -m bench.lab.measured_process COMMAND…`.

Linux adds the memory of the process that starts a program to that program's peak. A bench therefore
starts the program through this module, which imports nothing large.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

BYTES_PER_KIB = 1024


def main() -> None:
    """Print one JSON object as the last line: exit code, peak memory in bytes, CPU seconds."""
    code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    print(json.dumps({"code": code, "peak": usage.ru_maxrss * BYTES_PER_KIB, "cpu": cpu}))


if __name__ == "__main__":
    main()
