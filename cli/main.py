"""Entry point of the command line: the commands, and one sentence and an exit code for each error.

Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import click

from cli.lazy import LazyGroup
from edgespec import __version__
from edgespec.errors import EdgespecError
from edgespec.plain_text import plain

INTERRUPTED, TERMINATED = 130, 143
EXTRAS = {
    "onnx_ir": "export",
    "onnx": "export",
    "gguf": "export",
    "safetensors": "export",
    "ml_dtypes": "export",
    "huggingface_hub": "export",
    "torch": "torch",
    "transformers": "check",
    "matplotlib": "plots",
    "prometheus_client": "cloud",
    "cryptography": "signing",
    "starlette": "serve",
    "uvicorn": "serve",
    "anyio": "serve",
}
"""The extra that installs a module which a lean install lacks."""
COMMANDS = {
    "bench": "cli.bench:bench",
    "build": "cli.export:build",
    "calibrate": "cli.calibration:calibrate",
    "choose": "cli.choose:choose",
    "cloud-run": "cli.cloud:cloud_run",
    "demo": "cli.bench.local:demo",
    "distill": "cli.calibration:distill",
    "doctor": "cli.doctor:doctor",
    "edge-run": "cli.edge:edge_run",
    "export": "cli.export:export",
    "inspect": "cli.export:inspect",
    "keygen": "cli.cloud:keygen",
    "quantise": "cli.calibration:quantise",
    "serve": "cli.serve:serve",
    "top": "cli.cloud:top",
    "verify": "cli.edge:verify",
}


class _Main(LazyGroup):
    """Turns exceptions that a user can cause into one sentence and an exit code."""

    def invoke(self, context: click.Context) -> Any:
        _open_closed_streams()
        try:
            return super().invoke(context)
        except EdgespecError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            _fail(f"{error.strerror or error}{where}")
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            extra = EXTRAS.get(module)
            if extra is None:
                raise
            _fail(
                f"this command needs {module}, which edgespec's extra {extra!r} brings; "
                f"in a checkout: pip install -e '.[{extra}]'"
            )


def _fail(sentence: str, code: int = 1) -> NoReturn:
    click.echo(f"edgespec: {plain(sentence)}", err=True)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Replaces standard streams that the parent process closed with the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


@click.group(cls=_Main, places=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="edgespec",
                      help="Show the version and exit.")  # fmt: skip
def main() -> None:
    """Speculative decoding across a network.

    A small draft model on a device proposes tokens; a large target model in the cloud verifies
    them. The answer is exactly the target's own, token for token.
    """
    # SIGTERM ends a command in order: sessions are closed and unfinished files removed.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
