"""Runs a command and says what it used: `python -m bench.lab.measured_process COMMAND…`.

Linux counts the memory of the process that starts a program into that program's peak. So something
small has to start it: this module, which imports nothing large, and not the bench itself.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys


def main() -> None:
    """The last line on standard output is one JSON object: exit code, peak in bytes (of Linux's
    kilobytes), seconds of CPU."""
    code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    print(json.dumps({"code": code, "peak": usage.ru_maxrss * 1024, "cpu": cpu}))


if __name__ == "__main__":
    main()
