"""The commands that measure and show; `cli.main` finds them here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from cli.main import FOLDER, POSITIVE, energy_options, energy_root
from edgespec.errors import UsageError

THREADS = click.IntRange(1, 1024)
COUNT = click.IntRange(1, 2000)
SECONDS = click.FloatRange(0, 3600)


@click.command()
@click.option("--max-tokens", type=POSITIVE, default=64, show_default=True, help="Per answer.")
def demo(max_tokens: int) -> None:
    """Export the built-in pair, run device and cloud on this machine, and prove the answers."""
    from bench.demo import demo

    demo(max_tokens)


@click.group()
def bench() -> None:
    """Measure. Each prints a table; with --json the last line is one JSON object."""


@bench.command("local")
@click.argument("bundle", type=FOLDER, required=False)
@click.option("--drafter", default="", metavar="PROFILE", help="[default: the bundle's draft]")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Of each side.")
@energy_options
@click.option("--json", "as_json", is_flag=True)
def bench_local(
    bundle: Path | None, drafter: str, threads: int, as_json: bool, **options: Any
) -> None:
    """Step times, overhead of loop and wire, and speed with and without drafting, at no distance.

    BUNDLE is the demo's unless given.
    """
    from bench.local import run

    energy = energy_root(options)
    run(bundle, drafter=drafter, threads=threads, as_json=as_json, energy=energy)


@bench.command("link")
@click.argument("bundle", type=FOLDER, required=False)
@click.option(
    "--rtt", "rtts", default="0,10,25,50,100,200", show_default=True, help="Milliseconds."
)
@click.option("--jitter", type=float, default=0.0, show_default=True, help="Milliseconds.")
@click.option("--mbit", type=float, default=0.0, help="Bandwidth each way. [default: unlimited]")
@click.option(
    "--stall-every", type=float, default=0.0, help="Seconds between losses. [default: none]"
)
@click.option(
    "--stall", "stall_ms", type=float, default=200.0, show_default=True, help="Of a loss."
)
@click.option("--method", "methods", multiple=True, help="May be repeated. [default: all]")
@click.option("--ablation", is_flag=True, help="Also ours with each part switched off.")
@click.option("--useless", is_flag=True, help="Also ours with a draft that is never right.")
@click.option(
    "--draft",
    type=click.Choice(["self"]),
    help="Without BUNDLE: the built-in target drafts for itself at int8.",
)
@click.option("--draft-length", type=POSITIVE, default=4, show_default=True, help="Of lock-step.")
@click.option("--prompts", type=FOLDER, metavar="FILE", help="[default: the held-out set]")
@click.option("--limit", type=POSITIVE, default=2, show_default=True, help="Of each category.")
@click.option("--max-tokens", type=POSITIVE, default=64, show_default=True, help="Per answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True)
@energy_options
@click.option("--plot", type=FOLDER, metavar="FOLDER", help="Plots and a Chrome trace go there.")
@click.option("--json", "as_json", is_flag=True)
def bench_link(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """Every way of answering at every distance: device and cloud as processes, a link between.

    BUNDLE is the demo's unless given.
    """
    from bench.link.emulator import LinkShape
    from bench.link.run import LinkSettings, run

    shape = LinkShape(
        jitter_ms=options.pop("jitter"),
        mbit=options.pop("mbit"),
        stall_every=options.pop("stall_every"),
        stall_ms=options.pop("stall_ms"),
    )
    rtts = _milliseconds(options.pop("rtts"))
    options["draft"] = options["draft"] or ""
    options["energy"] = energy_root(options)
    run(bundle, LinkSettings(rtts_ms=rtts, shape=shape, **options), as_json=as_json)


def _milliseconds(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(rtt) for rtt in text.split(","))
    except ValueError:
        raise UsageError("--rtt is a list of milliseconds, as in 0,10,50") from None


@bench.command("plan")
@click.argument("files", type=FOLDER, nargs=-1, metavar="[PROFILE.json]...")
@click.option("--rtt", "rtts", metavar="LIST", help="Milliseconds. [default: the profile's]")
@click.option(
    "--prompts", type=POSITIVE, help="To answer, each. [default: 12, or as many as --link has]"
)
@click.option(
    "--recording",
    default="",
    metavar="FILE|builtin|self",
    help="What the pair says. [default: the profile's]",
)
@click.option(
    "--record", type=FOLDER, metavar="FILE", help="Record a pair; the argument is its BUNDLE."
)
@click.option(
    "--limit", type=POSITIVE, default=4, show_default=True, help="To record, of each category."
)
@click.option(
    "--max-tokens", type=POSITIVE, default=64, show_default=True, help="To record, an answer."
)
@click.option("--link", type=FOLDER, metavar="FILE", help="Compare with JSON of 'bench link'.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 10),
    default=0.15,
    show_default=True,
    help="Of --link: a share of what was measured.",
)
@click.option("--fleet", is_flag=True, help="How many devices one cloud serves at a rate.")
@click.option(
    "--target-rate", "rates", default="15", show_default=True, help="Of --fleet: tokens/s, a list."
)
@click.option(
    "--devices", metavar="LIST", help="Of --fleet, as in 8,16. [default: the capacity is searched]"
)
@click.option("--method", "methods", multiple=True, help="Of --fleet; may be repeated.")
@click.option("--think", type=SECONDS, default=0.0, show_default=True, help="Between two answers.")
@click.option("--most", type=COUNT, default=64, show_default=True, help="Devices to search up to.")
@click.option(
    "--seconds", type=SECONDS, default=10.0, show_default=True, help="Virtual ones, of each fleet."
)
@click.option("--plot", type=FOLDER, metavar="FILE", help="Draw the figures too, as in a.png.")
@click.option("--json", "as_json", is_flag=True)
def bench_plan(files: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Every way of answering on hardware that is not here: the real loops in virtual time.

    PROFILE.json holds step times; the built-in profiles are taken where there is none.
    """
    rtts = _milliseconds(options["rtts"]) if options["rtts"] else ()
    if options["fleet"]:
        _plan_fleet(files, rtts, options, as_json=as_json)
        return
    if (options["record"] or options["link"]) and len(files) > 1:
        raise UsageError("--record takes one BUNDLE at most, and --link one PROFILE.json")
    if sum(bool(options[name]) for name in ("record", "link", "plot")) > 1:
        raise UsageError("--record, --link and --plot exclude each other")
    file = files[0] if files else None
    if options["record"]:
        from bench.plan import record_pair

        limit, most = options["limit"], options["max_tokens"]
        record_pair.run(record_pair.RecordSettings(options["record"], file, limit, most))
    elif options["link"]:
        from bench.plan import link as plan_link

        link, tolerance, recording = options["link"], options["tolerance"], options["recording"]
        settings = plan_link.LinkComparison(
            link, tolerance, file, recording, rtts, options["prompts"] or 0
        )
        plan_link.run(settings, as_json=as_json)
    else:
        from bench.plan.run import PlanSettings, run

        recording, prompts, plot = options["recording"], options["prompts"] or 12, options["plot"]
        run(PlanSettings(files, recording, rtts, prompts, plot), as_json=as_json)


def _plan_fleet(
    files: tuple[Path, ...], rtts: tuple[float, ...], options: dict[str, Any], *, as_json: bool
) -> None:
    from bench.plan.fleet import FleetPlan, run

    if options["record"] or options["link"]:
        raise UsageError("--fleet, --record and --link exclude each other")
    try:
        rates = tuple(float(rate) for rate in options["rates"].split(","))
    except ValueError:
        raise UsageError("--target-rate is a list of tokens a second, as in 10,15") from None
    settings = FleetPlan(
        files, options["recording"], rtts or FleetPlan.rtts_ms, rates,
        _counts(options["devices"]) if options["devices"] else (),
        tuple(dict.fromkeys(options["methods"])) or FleetPlan.methods,
        options["most"], options["seconds"], think_seconds=options["think"], plot=options["plot"],
    )  # fmt: skip
    run(settings, as_json=as_json)


@bench.command("fleet")
@click.argument("bundle", type=FOLDER, required=False)
@click.option("--profile", type=FOLDER, metavar="FILE", help="Of the fleet. [default: built in]")
@click.option(
    "--recording",
    type=FOLDER,
    metavar="FILE",
    help="What the pair says, from 'bench plan --record'. [default: the profile's]",
)
@click.option(
    "--devices", metavar="LIST", help="As in 8,16,24. [default: each method's capacity is searched]"
)
@click.option("--most", type=COUNT, default=256, show_default=True, help="Devices to search up to.")
@click.option("--target-rate", type=float, default=0.0, help="Tokens/s. [default: the profile's]")
@click.option("--seconds", type=SECONDS, default=20.0, show_default=True, help="Of each window.")
@click.option(
    "--limit-seconds", type=SECONDS, default=840.0, show_default=True, help="Of the whole search."
)
@click.option("--method", "methods", multiple=True, help="May be repeated. [default: all]")
@click.option(
    "--mode",
    type=click.Choice(["auto", "edge"]),
    default="auto",
    show_default=True,
    help="Of ours.",
)
@click.option("--draft-length", type=POSITIVE, default=4, show_default=True, help="Of lock-step.")
@click.option(
    "--real",
    type=click.IntRange(0, 16),
    default=0,
    show_default=True,
    help="Devices beside ours that really draft.",
)
@click.option(
    "--cloud", "cloud_options", default="", metavar="OPTIONS", help="More options of cloud-run."
)
@energy_options
@click.option("--plot", type=FOLDER, metavar="FOLDER", help="Plots go there.")
@click.option("--json", "as_json", is_flag=True)
def bench_fleet(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """How many devices one cloud serves at the rate they were promised, by method.

    Devices are simulated: the real loop over real sockets, drafts replayed from a recording of the
    pair. BUNDLE is the demo's unless given.
    """
    from bench.fleet.generator import FLEET_METHODS, FleetSettings
    from bench.fleet.run import run

    options["devices"] = _counts(options["devices"]) if options["devices"] else ()
    options["methods"] = tuple(dict.fromkeys(options["methods"])) or FLEET_METHODS
    options["cloud_options"] = tuple(shlex.split(options["cloud_options"]))
    options["energy"] = energy_root(options)
    run(bundle, FleetSettings(**options), as_json=as_json)


@bench.command("crowd")
@click.argument("parts", nargs=-1, metavar="[offenders|overhead|churn|model]...")
@click.option("--bundle", type=FOLDER, help="[default: the demo's]")
@click.option("--profile", type=FOLDER, metavar="FILE", help="Of the fleet. [default: built in]")
@click.option(
    "--recording",
    type=FOLDER,
    metavar="FILE",
    help="What the pair says, from 'bench plan --record'. [default: the profile's]",
)
@click.option("--seconds", type=SECONDS, default=15.0, show_default=True, help="Of each window.")
@click.option("--polite", type=COUNT, default=15, show_default=True, help="Beside an offender.")
@click.option("--connected", type=COUNT, default=256, show_default=True, help="Sessions.")
@click.option("--active", type=COUNT, default=64, show_default=True, help="Of those connected.")
@click.option("--sessions", type=POSITIVE, default=20_000, show_default=True, help="Of churn.")
@click.option("--json", "as_json", is_flag=True)
def bench_crowd(parts: tuple[str, ...], bundle: Path | None, as_json: bool, **options: Any) -> None:
    """What a crowd costs the cloud, and one device that behaves badly the others.

    offenders: polite devices beside a greedy, deaf, flooding, babbling, vanishing one. overhead: of
    scheduler and wire. churn: what short sessions leave behind. model: of step times. Default: all.
    """
    from bench.crowd.cloud import PARTS, CrowdSettings
    from bench.crowd.run import run

    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"there is no part {unknown[0]!r}; choose from: {', '.join(PARTS)}")
    run(bundle, CrowdSettings(parts=parts or PARTS, **options), as_json=as_json)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(dict.fromkeys(int(count) for count in text.split(",")))
    except ValueError:
        counts = ()
    if not counts or not all(1 <= count <= 2000 for count in counts):
        raise UsageError("--devices is a list of numbers from 1 to 2000, as in 8,16,24")
    return counts


@bench.command("export")
@click.option(
    "--model",
    type=click.Choice(["1b", "3b", "7b"]),
    default="1b",
    show_default=True,
    help="Shapes of TinyLlama-1.1B, Llama-3.2-3B or Llama-2-7B, in fp16.",
)
@click.option("--segments", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp32", "fp16", "int8", "int4"]),
    multiple=True,
    help="Can be repeated. [default: fp16 and int4; of 3b and 7b fp16 alone]",
)
@click.option("--load", is_flag=True, help="Measure loading each bundle too, as bench load does.")
@click.option("--json", "as_json", is_flag=True)
def bench_export(
    model: str, segments: int, precisions: tuple[str, ...], load: bool, as_json: bool
) -> None:
    """Peak memory and time of exporting a Llama of random fp16 weights.

    Writes the checkpoint and one bundle into the temporary folder (TMPDIR), 27 GB for 7b, and
    removes them. Exit code 1 where the peak exceeds three layers' weights and 300 MB.
    """
    from bench.memory.export import ExportBench, run

    chosen = precisions or (("fp16", "int4") if model == "1b" else ("fp16",))
    if not run(ExportBench(model, segments, chosen, load), as_json=as_json):
        raise click.exceptions.Exit(1)


@bench.command("load")
@click.argument("bundle", type=FOLDER, required=False)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def bench_load(bundle: Path | None, threads: int, as_json: bool) -> None:
    """Memory that loading a bundle's target takes, beside the size of its weights.

    Without BUNDLE: the built-in pair.
    """
    from bench.lab.builtin import builtin_bundle
    from bench.memory.load import run
    from edgespec.manifest import Bundle

    if not run(Bundle.open(bundle) if bundle else builtin_bundle(), threads, as_json=as_json):
        raise click.exceptions.Exit(1)


@bench.command("arm")
@click.option(
    "--board",
    "boards",
    type=click.Choice(["rpi4", "rpi5"]),
    multiple=True,
    help="To emulate; may be repeated. [default: both]",
)
@click.option("--max-tokens", type=POSITIVE, default=12, show_default=True, help="Of the answer.")
@click.option("--wheels", is_flag=True, help="Instead count what a device installs, by Python.")
@click.option("--json", "as_json", is_flag=True)
def bench_arm(boards: tuple[str, ...], max_tokens: int, wheels: bool, as_json: bool) -> None:
    """The device as aarch64, emulated, with a cloud on this machine: are the tokens identical?

    Needs an x86-64 Debian 12 and the network the first time, no privileges; installs nothing. Exit
    code 1 where an answer differs from the target's own, or the device drafted none of it.
    """
    from bench.arm.check import check
    from bench.arm.wheels import count

    if wheels:
        count(as_json=as_json)
    else:
        check(boards or ("rpi4", "rpi5"), max_tokens, as_json=as_json)


@bench.command("acceptance")
@click.argument("bundle", type=FOLDER, required=False)
@click.option(
    "--prompts",
    type=FOLDER,
    metavar="FILE",
    help='JSON lines with "prompt" and "category". [default: the built-in held-out set]',
)
@click.option(
    "--drafter", default="", metavar="PROFILE|ngram", help="[default: the bundle's draft]"
)
@click.option("--max-tokens", type=POSITIVE, default=64, show_default=True, help="Per answer.")
@click.option("--limit", type=POSITIVE, metavar="N", help="The first N prompts of each category.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Of either model.")
@click.option(
    "--temperature",
    type=float,
    help="Measure at this one; 0 is greedy. [default: greedy, then 0.7 with top-p 0.9]",
)
@click.option("--exits/--no-exits", default=True, show_default=True, help="Run the exit heads.")
@click.option(
    "--training",
    type=FOLDER,
    metavar="CORPUS",
    help="Stop if this training text shares eight words in a row with a prompt.",
)
@click.option("--plot", type=FOLDER, metavar="FILE", help="Draw the figures too, as in a.png.")
@click.option("--json", "as_json", is_flag=True)
def bench_acceptance(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """How often the draft names the target's token, and what that is worth a round.

    BUNDLE is the demo's unless given.
    """
    from bench.acceptance.run import AcceptanceSettings, run

    run(bundle, AcceptanceSettings(**options), as_json=as_json)


@bench.command("shapes")
@click.option("--work", type=FOLDER, required=True, help="Where drafts and bundles are kept.")
@click.option("--corpus", type=FOLDER, help="The target's text. [default: the cache]")
@click.option("--tokens", type=POSITIVE, default=1_000_000, show_default=True, help="Of it.")
@click.option("--depths", default="4,8,12,16,20", show_default=True, help="Layers of the drafts.")
@click.option(
    "--draft", "drafts", multiple=True, metavar="NAME=FOLDER", help="A draft that is there already."
)
@click.option("--words", default="", help="Also trim each --draft to so many, as in 8192,16384.")
@click.option("--steps", type=POSITIVE, default=30, show_default=True, help="Of training, each.")
@click.option("--limit", type=POSITIVE, metavar="N", help="The first N prompts of each category.")
@click.option("--threads", type=THREADS, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def bench_shapes(
    depths: str, drafts: tuple[str, ...], words: str, as_json: bool, **options: Any
) -> None:
    """Train drafts of several depths for the built-in target, and say which promises most."""
    from bench.acceptance.shapes import ShapesSettings, run

    try:
        wanted = tuple(int(depth) for depth in depths.split(",") if depth)
        sizes = tuple(int(size) for size in words.split(",") if size)
        named = tuple((name, Path(path)) for name, path in (d.split("=", 1) for d in drafts))
    except ValueError:
        raise UsageError(
            "--depths and --words are lists as in 4,8 and --draft is NAME=FOLDER"
        ) from None
    settings = ShapesSettings(depths=wanted, drafts=named, words=sizes, **options)
    run(settings, as_json=as_json)


@bench.command("gpu")
@click.option(
    "--shapes", type=click.Choice(["llama-2-7b", "tiny"]), default="llama-2-7b", show_default=True
)
@click.option(
    "--backend",
    "modes",
    type=click.Choice(["torch", "torch-fast"]),
    multiple=True,
    help="May be repeated. [default: both]",
)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16", "int8", "int4"]),
    default="fp16",
    show_default=True,
)
@click.option(
    "--rows", "most_rows", type=COUNT, default=64, show_default=True, help="To measure up to."
)
@click.option("--plot", type=FOLDER, metavar="FILE", help="Draw the figures too, as in a.png.")
@click.option("--json", "as_json", is_flag=True)
def bench_gpu(as_json: bool, **options: Any) -> None:
    """Steps of a target with random weights against what the card can do at best."""
    from bench.gpu.run import MODES, GpuSettings, run

    options["modes"] = tuple(dict.fromkeys(options["modes"])) or MODES
    run(GpuSettings(**options), as_json=as_json)
