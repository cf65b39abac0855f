"""Options and value types that several commands share.

Each option has one spelling, one short form and one meaning in all commands.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from edgespec.config import EdgeSettings, Mode, Offline
from edgespec.errors import UsageError

EDGE = EdgeSettings()
"""The defaults of a device."""

POSITIVE = click.IntRange(min=1)
PATH = click.Path(path_type=Path)
PRECISIONS = click.Choice(["fp32", "fp16", "int8", "int4"])
THREADS = click.IntRange(0, 1024)
"""0 leaves the choice to edgespec."""
DEVICES_COUNT = click.IntRange(1, 2000)
"""Devices that one bench simulates."""
UNITS = "_kmgt"
"""Powers of 1024 that a size may name."""

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]
"""Adds one option or argument to a command."""


class FiniteRange(click.FloatRange):
    """Finite floats; NaN would pass every `FloatRange`."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail("not a finite number", param, ctx)
        return number


SECONDS = FiniteRange(0.0, 86400.0)


class Size(click.ParamType):  # type: ignore[type-arg]  # click 8.1 has no type argument
    """Bytes: `512M`, `4G`, `1.5g`, or a plain number."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,15}(?:\.\d*)?)\s*([kmgt]?)(?:i?b)?", value.strip().lower())
        amount = float(found[1]) * 1024 ** UNITS.index(found[2] or "_") if found else 0.0
        if amount < 1:
            self.fail(f"{value!r} is no size, as in 512M or 4G", param, ctx)
        return int(amount)


class NumberList(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas; an empty text is an empty list."""

    name = "list"

    def __init__(
        self,
        number: Callable[[str], float],
        content: str,
        example: str,
        *,
        at_least: float = -math.inf,
        at_most: float = math.inf,
    ) -> None:
        """`content` and `example` describe the list in messages: "milliseconds", "0,10,50"."""
        self._number = number
        self._description = f"a list of {content}, as in {example}"
        self._at_least, self._at_most = at_least, at_most

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """Raises `UsageError`, with the option's name, for a text that is not such a list."""
        del ctx
        if not isinstance(value, str):
            return tuple(value)
        try:
            numbers = tuple(self._number(part) for part in value.split(",")) if value else ()
            if all(self._at_least <= number <= self._at_most for number in numbers):
                return numbers
        except ValueError:
            pass
        raise UsageError(f"{param.opts[0]} is {self._description}")


LAYERS = NumberList(int, "layers", "10,20")
MILLISECONDS = NumberList(float, "milliseconds", "0,10,50")


def bundle_argument(*, required: bool = True) -> Decorator[Any]:
    return click.argument("bundle", type=PATH, required=required)


def out_option(help: str) -> Decorator[Any]:
    return click.option("-o", "--out", type=PATH, required=True, help=help)


def json_option(help: str = "End with one line of JSON.") -> Decorator[Any]:
    return click.option("-j", "--json", "as_json", is_flag=True, help=help)


def connect_option(default: str, *, metavar: str, help: str) -> Decorator[Any]:
    return click.option(
        "-c", "--connect", default=default, show_default=True, metavar=metavar, help=help
    )


def max_tokens_option(default: int, help: str = "Longest answer, in tokens.") -> Decorator[Any]:
    return click.option(
        "-n", "--max-tokens", type=POSITIVE, default=default, show_default=True, help=help
    )


def threads_option(help: str, *, default: int = 1, automatic: str = "") -> Decorator[Any]:
    """`automatic` says what happens without the option; with it 0 is allowed, and the default."""
    return click.option(
        "-t",
        "--threads",
        type=THREADS if automatic else click.IntRange(1, 1024),
        default=0 if automatic else default,
        show_default=automatic or True,
        help=help,
    )


def seed_option(help: str) -> Decorator[Any]:
    return click.option(
        "-s", "--seed", type=click.IntRange(min=0), default=0, show_default=True, help=help
    )


def force_option(help: str) -> Decorator[Any]:
    return click.option("-f", "--force", is_flag=True, help=help)


server_key_option = click.option(
    "--server-key",
    type=PATH,
    metavar="FILE",
    help="File with the cloud's public key, required if the cloud is another machine.",
)
device_key_option = click.option(
    "--key",
    type=PATH,
    metavar="FILE",
    help="File with this device's secret key, for a cloud that admits known devices only.",
)
drafter_option = click.option(
    "--drafter",
    default=EDGE.drafter,
    metavar="PROFILE|ngram|none",
    show_default="the bundle's first draft",
    help="Draft of the bundle, prompt lookup (ngram), or no drafting on the device (none).",
)
mode_option = click.option(
    "-m",
    "--mode",
    type=click.Choice(get_args(Mode)),
    default=EDGE.mode,
    show_default=True,
    help="Who drafts: the device (edge), the cloud, neither (cloud), or what is faster (auto).",
)
connect_timeout_option = click.option(
    "--connect-timeout",
    type=SECONDS,
    default=EDGE.connect_timeout,
    show_default=True,
    help="Seconds to wait for the cloud's first reply.",
)
give_up_option = click.option(
    "--give-up",
    type=SECONDS,
    default=EDGE.give_up,
    show_default=True,
    help="Seconds to wait during an answer while the cloud is silent, full or restarting.",
)
bundle_key_option = click.option(
    "--bundle-key",
    type=PATH,
    metavar="FILE",
    help="Refuse a bundle that was not signed by the owner of this public key.",
)
sign_option = click.option(
    "--sign",
    "secret",
    type=PATH,
    metavar="FILE",
    help="Sign the bundle with this secret key, made by 'edgespec keygen --signing'.",
)


def signer(secret: Path | None) -> Callable[[Path], None]:
    """A function that signs a folder with the key of the file, which is read now.

    Without a file the function does nothing.
    """
    key = None
    if secret is not None:
        from edgespec.signing import read_secret

        key = read_secret(secret)

    def signed(folder: Path) -> None:
        if key is not None:
            from edgespec.signing import sign

            sign(folder, key)

    return signed


def plot_option(*, folder: bool = False) -> Decorator[Any]:
    return click.option(
        "--plot",
        type=PATH,
        metavar="FOLDER" if folder else "FILE",
        help="Write plots into this folder." if folder else "Also draw the figures, as in a.png.",
    )


def need_modules(*names: str) -> None:
    """Raises `ModuleNotFoundError` for the first of the modules that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"no {name}", name=name)


def trace_option(command: Command) -> Command:
    return click.option(
        "--trace", type=PATH, metavar="FILE", help="Write a trace of all activity as JSON lines."
    )(command)


def energy_options(command: Command) -> Command:
    """`--energy`, and the hidden `--sensors`; `energy_root` reads both."""
    return click.option(
        "--energy", is_flag=True, help="Measure this machine's energy and heat with its sensors."
    )(sensors_option(command))


def sensors_option(command: Command) -> Command:
    return click.option(
        "--sensors",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=Path("/"),
        hidden=True,
        help="Read a recorded file tree instead of this machine's sensors.",
    )(command)


def energy_root(options: dict[str, Any]) -> Path | None:
    """Removes both energy options from `options`. None: nothing is to be measured."""
    sensors: Path = options.pop("sensors")
    return sensors if options.pop("energy") else None


def read_text(path: Path | None) -> str | None:
    """The content of a file that an option names; None without one. Raises `UsageError`."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def offline_options(command: Command) -> Command:
    """`--offline` and `--offline-after`, which `check_offline` compares."""
    command = click.option(
        "--offline-after",
        type=SECONDS,
        default=EDGE.offline_after,
        show_default=True,
        help="Seconds without the cloud after which --offline draft begins.",
    )(command)
    return click.option(
        "--offline",
        type=click.Choice(get_args(Offline)),
        default=EDGE.offline,
        show_default=True,
        help="Without the cloud: wait (refuse), or write on with the draft, unverified (draft).",
    )(command)


def check_offline(options: dict[str, Any]) -> None:
    """Raises `UsageError` if a time was given for what was not asked for."""
    given = click.get_current_context().get_parameter_source("offline_after")
    if given is ParameterSource.COMMANDLINE and options["offline"] != "draft":
        raise UsageError(
            "--offline-after is the time until --offline draft begins; pass --offline draft too"
        )
