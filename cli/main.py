"""The command line. It imports outward only inside its commands.

Commands of a package that brings its own (`ELSEWHERE`) stand in its `cli.py`, by the same rule.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from edgespec import __version__
from edgespec.config import LOOPBACK, Backend, CloudSettings, EdgeSettings, Mode, PreDraft, Tactics
from edgespec.errors import EdgespecError, UsageError
from edgespec.logs import Format, Level, configure
from edgespec.manifest import COMPAT_OPSET, MAIN_OPSET
from engines.machine.energy.files import ROOT

CLOUD, EDGE = CloudSettings(), EdgeSettings()
PRECISIONS = click.Choice(["fp32", "fp16", "int8", "int4"])
FLOATS = click.Choice(["fp32", "fp16"])
POSITIVE = click.IntRange(min=1)


class _Seconds(click.FloatRange):
    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        seconds = super().convert(value, param, ctx)
        if seconds != seconds:  # NaN passes every range
            self.fail("not a number of seconds", param, ctx)
        return seconds


def size(value: str | int) -> int:
    """Bytes: `512M`, `4G`, `1.5g`, or a plain number; units are powers of 1024."""
    if isinstance(value, int):
        return value
    found = re.fullmatch(r"(\d{1,15}(?:\.\d*)?)\s*([kmgt]?)(?:i?b)?", value.strip().lower())
    amount = float(found[1]) * 1024 ** "_kmgt".index(found[2] or "_") if found else 0.0
    if amount < 1:
        raise click.BadParameter(f"{value!r} is no size, as in 512M or 4G")
    return int(amount)


SECONDS = _Seconds(0.0, 86400.0)
THREADS = click.IntRange(0, 1024)
FOLDER = click.Path(path_type=Path)
TRACE = click.option(
    "--trace", type=FOLDER, metavar="FILE", help="Write who was busy when, JSON lines."
)
Command = TypeVar("Command", bound=Callable[..., Any])


def energy_options(command: Command) -> Command:
    """`--energy`, and whose sensors: `energy_root` makes one setting of the two."""
    command = click.option(
        "--sensors",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=ROOT,
        hidden=True,
        help="Root of a recorded file tree, to read instead of this machine's.",
    )(command)
    return click.option(
        "--energy", is_flag=True, help="Measure this machine's energy and heat, by its sensors."
    )(command)


def energy_root(options: dict[str, Any]) -> Path | None:
    """Takes both out of `options`. None: nothing is to be measured."""
    sensors: Path = options.pop("sensors")
    return sensors if options.pop("energy") else None


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
}
"""Which extra brings a module that a lean install lacks."""
ELSEWHERE = {
    "build": "cli.export:build",
    "distill": "cli.calibration:distill",
    "quantise": "cli.calibration:quantise",
    "calibrate": "cli.calibration:calibrate",
    "demo": "cli.bench:demo",
    "bench": "cli.bench:bench",
}
"""Commands that stand in another module, which is imported once one of them is asked for."""


class _Commands(click.Group):
    """Turns edgespec's errors into one sentence and an exit code, and finds commands elsewhere."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *ELSEWHERE})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in ELSEWHERE:
            return super().get_command(context, name)
        module, _, attribute = ELSEWHERE[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, context: click.Context) -> Any:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:  # closed by whoever started us
                setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
        try:
            return super().invoke(context)
        except EdgespecError as error:
            click.echo(f"edgespec: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(130)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            click.echo(f"edgespec: {error.strerror or error}{where}", err=True)
            sys.exit(1)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            click.echo(
                f"edgespec: this command needs {error.name}, which edgespec's extra {extra!r} "
                f"brings; in a checkout: pip install -e '.[{extra}]'",
                err=True,
            )
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgespec")
def main() -> None:
    """Speculative decoding across a network: a draft on the device, a target in the cloud, and an
    answer that is the target's own, token for token."""


@main.command()
@click.argument("model")
@click.option("--out", type=FOLDER, required=True, help="Folder of the bundle.")
@click.option("--revision", help="Of a hub model: branch, tag or commit.")
@click.option(
    "--precision",
    type=PRECISIONS,
    default="fp32",
    show_default=True,
    help="Of the target's layers.",
)
@click.option(
    "--head-precision",
    type=PRECISIONS,
    help="Of the target's output matrix. [default: int8 for int8 and int4 layers]",
)
@click.option(
    "--embedding-precision",
    type=FLOATS,
    help="Of the target's embedding. [default: fp16 for int8 and int4 layers]",
)
@click.option(
    "--opset",
    type=click.Choice([str(MAIN_OPSET), str(COMPAT_OPSET)]),
    default=str(MAIN_OPSET),
    show_default=True,
    help="Of the target's graphs: 21 is plain operators, for an ONNX Runtime before 1.25 and "
    "TensorRT 10. A draft's is its profile's.",
)
@click.option("--segments", type=POSITIVE, help="Cut the target into N even segments.")
@click.option("--split", help="Cut the target after these layers, as in 10,20.")
@click.option("--draft", help="The draft: folder, hub id, GGUF file, or 'self' (the target).")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    help="Hardware and precision of the draft; may be repeated. [default: cpu-int8]",
)
@click.option(
    "--exit-heads",
    type=FOLDER,
    metavar="FILE",
    help="Trained exit heads, from 'edgespec calibrate'. [default: untrained]",
)
@click.option(
    "--context", type=click.IntRange(min=16), help="Positions to provide for, prompt included."
)
@click.option("--check", is_flag=True, help="Compare with transformers on real prompts.")
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
def export(model: str, out: Path, check: bool, **options: Any) -> None:
    """Write MODEL (a Hugging Face folder or hub id, or a GGUF file) as a bundle."""
    from engines.machine.profiles import precisions, profile
    from export.bundle import ExportSettings, export

    draft, profiles = options["draft"], options["profiles"] or ("cpu-int8",)
    if options["profiles"] and draft is None:
        raise UsageError("--profile says how to export a draft; pass --draft too")
    if options["split"] and options["segments"]:
        raise UsageError("--split and --segments say the same; pass one of them")
    for name in profiles:
        profile(name)
    for module in ("transformers", "torch") if check else ():
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"no {module}", name=module)
    settings = ExportSettings(
        target=model,
        out=out,
        revision=options["revision"],
        precisions=precisions(
            options["precision"],
            head=options["head_precision"],
            embedding=options["embedding_precision"],
        ),
        opset=int(options["opset"]),
        segments=options["segments"] or 1,
        split=layer_list(options["split"], "--split"),
        drafts=tuple((name, draft) for name in dict.fromkeys(profiles)) if draft else (),
        exit_heads=options["exit_heads"],
        context=options["context"] or 0,
        force=options["force"],
    )
    bundle = export(settings)
    size = sum(file.size for file in bundle.manifest.files.values())
    click.echo(f"{out}: {len(bundle.manifest.files)} files, {size / 1e6:.0f} MB", err=True)
    if check:
        from export.check import check as compare
        from export.install import install

        install(bundle, None, {}, compare(bundle, settings))
    elif options["precision"] in ("int8", "int4"):
        click.echo(
            f"what {options['precision']} costs in agreement with the original is not measured; "
            f"--check does it here, and 'edgespec calibrate {model} --bundle {out}' on more text",
            err=True,
        )


def layer_list(text: str | None, option: str) -> tuple[int, ...]:
    """`10,20` as numbers. Raises `UsageError` naming the option."""
    try:
        return tuple(int(layer) for layer in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{option} {text} is no list of layers, as in 10,20") from None


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option("--verify", is_flag=True, help="Compare every file with its checksum.")
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON line.")
def inspect(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show what is in BUNDLE."""
    from cli.inspection import inspect

    inspect(bundle, verify=verify, as_json=as_json)


@main.command("cloud-run")
@click.argument("bundle", type=FOLDER)
@click.option("--bind", default=LOOPBACK, show_default=True, help="Endpoint to listen on.")
@click.option("--key", type=FOLDER, help="Secret key file; needed beyond loopback.")
@click.option(
    "--max-sessions",
    type=POSITIVE,
    default=CLOUD.max_sessions,
    show_default=True,
    help="Sessions open at once, those that wait for memory included.",
)
@click.option(
    "--kv-memory",
    type=size,
    default=CLOUD.kv_memory,
    metavar="SIZE",
    help="For the KV cache, as in 512M or 4G; with --draft shared with the draft's, so that both "
    "hold equally many tokens. [default: a quarter of the free memory, half of a GPU's]",
)
@click.option(
    "--max-batch-rows",
    type=click.IntRange(min=0),
    default=CLOUD.max_batch_rows,
    help="Sessions of one step of the target; 0 is as many as pay.",
)
@click.option(
    "--max-draft",
    type=click.IntRange(1, 64),
    default=CLOUD.max_draft,
    show_default=True,
    help="Draft tokens verified in one round.",
)
@click.option(
    "--prefill-chunk",
    type=click.IntRange(2, 4096),
    default=CLOUD.prefill_chunk,
    show_default=True,
    help="Prompt tokens run at a time.",
)
@click.option(
    "--hints/--no-hints",
    default=CLOUD.hints,
    show_default=True,
    help="Run the exit heads for devices that ask for hints.",
)
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default=CLOUD.backend,
    show_default=True,
    help="What runs the target: onnxruntime (on the GPU where it can), tensorrt, torch. Exact are "
    "onnxruntime on a CPU and torch; torch-fast is not; of the others doctor --exactness tells.",
)
@click.option(
    "--draft",
    default="",
    metavar="PROFILE",
    help="Also load this draft here, to draft beside the target where that is faster.",
)
@click.option("--threads", type=THREADS, default=0, help="[default: every core]")
@TRACE
@click.option(
    "--idle-timeout",
    type=SECONDS,
    default=CLOUD.idle_timeout,
    show_default=True,
    help="Seconds of a device's silence after which its session is closed.",
)
@click.option(
    "--drain-timeout",
    type=SECONDS,
    default=CLOUD.drain_timeout,
    show_default=True,
    help="Seconds that SIGTERM and Ctrl-C leave to answers in flight; what is unfinished then goes "
    "back to its device, which goes on elsewhere.",
)
@click.option(
    "--status",
    default=CLOUD.status,
    metavar="HOST:PORT",
    help="Serve /metrics, /health, /health/ready and what 'edgespec top' shows, unencrypted.",
)
@energy_options
@click.option(
    "--log-format", type=click.Choice(get_args(Format)), default="text", show_default=True
)
@click.option("--log-level", type=click.Choice(get_args(Level)), default="info", show_default=True)
def cloud_run(bundle: Path, log_format: Format, log_level: Level, **options: Any) -> None:
    """Serve the target of BUNDLE to devices."""
    from cloud_runtime.command import cloud_run
    from edgespec.manifest import Bundle

    configure(log_format, log_level)
    settings = CloudSettings(energy=energy_root(options), **options)
    cloud_run(Bundle.open(bundle), settings)


@main.command("edge-run")
@click.argument("bundle", type=FOLDER)
@click.option("--connect", default=LOOPBACK, show_default=True, help="The cloud's endpoint.")
@click.option("--server-key", type=FOLDER, help="The cloud's public key; needed beyond loopback.")
@click.option("--prompt", help="The prompt. [default: standard input]")
@click.option("--chat", is_flag=True, help="Use the chat template; on a terminal, converse.")
@click.option("--system", default="", help="System message, with --chat.")
@click.option("--max-tokens", type=POSITIVE, default=256, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=int, default=0, show_default=True, help="0 keeps all tokens.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--stop", "stops", multiple=True, help="End at this text; may be repeated.")
@click.option(
    "--drafter",
    default="",
    metavar="PROFILE|ngram|none",
    help="Who drafts; none is plain cloud decoding. [default: the bundle's draft]",
)
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    default=EDGE.mode,
    show_default=True,
    help="Who drafts: this device, the cloud beside its target, nobody, or whoever it pays for.",
)
@click.option(
    "--pre-draft",
    type=click.Choice(get_args(PreDraft)),
    default=EDGE.tactics.pre_draft,
    show_default=True,
    help="What to draft while a verdict is out: tree streams on; exits (in lock-step, for what "
    "each exit head predicts) and none are there to compare.",
)
@click.option(
    "--branches/--no-branches",
    default=EDGE.tactics.branches,
    show_default=True,
    help="With tree: also draft for tokens that the target may name instead.",
)
@click.option(
    "--hints/--no-hints",
    default=None,
    help="Ask for hints of exit heads. [default: where they cost the cloud little]",
)
@click.option(
    "--cloud-waits/--cloud-goes-on",
    default=None,
    help="Whether the target rests until a draft has come. [default: in lock-step only]",
)
@click.option(
    "--draft-length",
    type=click.IntRange(1, 64),
    default=EDGE.draft_length,
    show_default=True,
    help="Tokens drafted a round, in lock-step.",
)
@click.option("--explain", is_flag=True, help="Say which mode is used, and why.")
@TRACE
@click.option("--threads", type=THREADS, default=0, help="[default: what the profile says]")
@click.option(
    "--connect-timeout",
    type=SECONDS,
    default=EDGE.connect_timeout,
    show_default=True,
    help="Seconds to wait for the cloud.",
)
@click.option(
    "--give-up",
    type=SECONDS,
    default=EDGE.give_up,
    show_default=True,
    help="Seconds to wait, in the middle of an answer, for a cloud that is silent, full or stops.",
)
@click.option(
    "--target-rate",
    type=click.FloatRange(0.0, 1e6, max_open=True),
    default=EDGE.target_rate,
    help="Tokens a second that are enough: others go first while this answer is faster. "
    "[default: as fast as possible]",
)
@energy_options
@click.option("--show-drafts", is_flag=True, help="Colour accepted and corrected tokens.")
@click.option("--json", "as_json", is_flag=True, help="Figures as one JSON line on stderr.")
def edge_run(bundle: Path, **options: Any) -> None:
    """Answer a prompt on this device, with the target in the cloud."""
    from edge_runtime.terminal import TextSettings, edge_run
    from edgespec.manifest import Bundle
    from edgespec.sampling import Sampling

    text = TextSettings(
        prompt=options["prompt"],
        chat=options["chat"],
        system=options["system"],
        max_tokens=options["max_tokens"],
        sampling=Sampling(
            options["temperature"], options["top_p"], options["top_k"], options["seed"]
        ),
        stops=options["stops"],
        show_drafts=options["show_drafts"],
        json=options["as_json"],
        explain=options["explain"],
    )
    settings = EdgeSettings(
        connect=options["connect"],
        server_key=options["server_key"],
        drafter=options["drafter"],
        mode=options["mode"],
        tactics=Tactics(
            options["pre_draft"], options["branches"], options["hints"], options["cloud_waits"]
        ),
        draft_length=options["draft_length"],
        trace=options["trace"],
        threads=options["threads"],
        connect_timeout=options["connect_timeout"],
        give_up=options["give_up"],
        target_rate=options["target_rate"],
        energy=energy_root(options),
    )
    # As systemd stops a service: the cloud is told, so that the slot is free at once.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    edge_run(Bundle.open(bundle), settings, text)


@main.command()
@click.option(
    "--connect",
    default="http://127.0.0.1:5556",
    show_default=True,
    metavar="URL",
    help="What --status of cloud-run says.",
)
@click.option("--once", is_flag=True, help="Show it once, also into a pipe.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line each time.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600.0), default=1.0, show_default=True,
    help="Seconds between two looks.",
)  # fmt: skip
def top(connect: str, once: bool, as_json: bool, interval: float) -> None:
    """Watch a cloud: sessions, batch, acceptance, memory and modes."""
    from cli.top import watch

    watch(connect, once=once, as_json=as_json, interval=interval)


@main.command()
@click.argument("folder", type=FOLDER)
def keygen(folder: Path) -> None:
    """Make a key pair for links beyond loopback: cloud.key_secret stays on the cloud, cloud.key
    goes to the devices."""
    import zmq.auth

    if (folder / "cloud.key_secret").exists():
        raise UsageError(f"{folder} holds a key already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        public, secret = zmq.auth.create_certificates(str(folder), "cloud")
    finally:
        os.umask(before)
    click.echo(f"secret: {secret}\npublic: {public}")


@main.command()
@click.option(
    "--exactness",
    "bundle",
    type=FOLDER,
    metavar="BUNDLE",
    help="Measure whether every way of computing a token gives the same bits here.",
)
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default=CLOUD.backend,
    show_default=True,
    help="With --exactness: which one; torch also says what its exactness costs.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def doctor(bundle: Path | None, backend: str, as_json: bool) -> None:
    """Say what this machine can run, and which profile fits."""
    from engines.machine.doctor import describe, report

    if bundle is None:
        machine = describe()
        click.echo(json.dumps(machine.as_dict()) if as_json else report(machine))
        return
    from edgespec.manifest import Bundle
    from engines.exactness import doctor

    found = doctor(Bundle.open(bundle), backend)
    click.echo(json.dumps(found.as_dict()) if as_json else found.report())
    if not found.exact:
        sys.exit(1)
