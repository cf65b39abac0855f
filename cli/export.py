"""Commands that make and show bundles: `export`, `build` and `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from cli.options import (
    LAYERS,
    PATH,
    POSITIVE,
    PRECISIONS,
    bundle_argument,
    force_option,
    json_option,
    need_modules,
    out_option,
    sign_option,
    signer,
)
from edgespec.errors import UsageError
from edgespec.manifest import COMPAT_OPSET, MAIN_OPSET, Bundle, HalfFloat

DEFAULT_PROFILE = "cpu-int8"


@click.command()
@click.argument("model")
@out_option("Folder of the bundle.")
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option(
    "--precision",
    type=PRECISIONS,
    default="fp32",
    show_default=True,
    help="Precision of the target's layers.",
)
@click.option(
    "--head-precision",
    type=PRECISIONS,
    show_default="int8 for int8 and int4 layers",
    help="Precision of the target's output matrix.",
)
@click.option(
    "--embedding-precision",
    type=click.Choice(["fp32", "fp16"]),
    show_default="fp16 for int8 and int4 layers",
    help="Precision of the target's embedding.",
)
@click.option(
    "--opset",
    type=click.Choice([str(MAIN_OPSET), str(COMPAT_OPSET)]),
    default=str(MAIN_OPSET),
    show_default=True,
    help="ONNX opset of the target; 21 is for ONNX Runtime before 1.25 and TensorRT 10.",
)
@click.option("--segments", type=POSITIVE, help="Cut the target into this many even segments.")
@click.option("--split", type=LAYERS, help="Cut the target after these layers, as in 10,20.")
@click.option(
    "--draft", metavar="MODEL|self", help="Draft to add: a model, or self for the target itself."
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    show_default=DEFAULT_PROFILE,
    help="Hardware and precision of the draft; may be repeated.",
)
@click.option(
    "--exit-heads",
    type=PATH,
    metavar="FILE",
    show_default="untrained",
    help="Trained exit heads, written by 'edgespec calibrate'.",
)
@click.option(
    "--context",
    type=click.IntRange(min=16),
    show_default="the model's",
    help="Longest text to provide for, in tokens, prompt included.",
)
@click.option("--check", is_flag=True, help="Compare with transformers on real prompts.")
@sign_option
@force_option("Replace an existing bundle.")
def export(model: str, out: Path, check: bool, secret: Path | None, **options: Any) -> None:
    """Write MODEL as a bundle: ONNX graphs for the device and the cloud.

    MODEL is a Hugging Face folder or hub id (safetensors), or a GGUF file.
    """
    from engines.machine.profiles import precisions, profile
    from export.bundle import ExportSettings, export
    from export.summary import sentences

    signed = signer(secret)
    draft, profiles = options["draft"], options["profiles"] or (DEFAULT_PROFILE,)
    if options["profiles"] and draft is None:
        raise UsageError("--profile says how to export a draft; pass --draft too")
    if options["split"] and options["segments"]:
        raise UsageError("--split and --segments say the same; pass one of them")
    for name in profiles:
        profile(name)
    if check:
        need_modules("transformers", "torch")
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
        split=options["split"] or (),
        drafts=tuple((name, draft) for name in dict.fromkeys(profiles)) if draft else (),
        exit_heads=options["exit_heads"],
        context=options["context"] or 0,
        force=options["force"],
    )
    bundle = export(settings)
    for sentence in sentences(bundle, model):
        click.echo(sentence, err=True)
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
    signed(out)


@click.command()
@bundle_argument()
@click.option("--profile", required=True, help="Hardware to build for; it must be this machine's.")
@click.option(
    "--graphs",
    type=click.Choice(["draft", "target", "all"]),
    show_default="draft; all for the profile cuda",
    help="Graphs to build.",
)
@click.option(
    "--draft",
    default="",
    metavar="PROFILE",
    show_default="--profile, or another that fits",
    help="Profile of the draft.",
)
@click.option(
    "--capacity",
    "capacities",
    type=POSITIVE,
    multiple=True,
    show_default="the profile's",
    help="Tokens in a slot; may be repeated, and each is an engine with all weights.",
)
@click.option(
    "--floats",
    type=click.Choice(get_args(HalfFloat)),
    default="fp16",
    show_default=True,
    help="Type of activations; use bf16 if fp16 overflows.",
)
@sign_option
@force_option("Also build engines that are up to date.")
def build(bundle: Path, profile: str, graphs: str | None, draft: str, capacities: tuple[int, ...],
          floats: str, secret: Path | None, force: bool) -> None:  # fmt: skip
    """Build TensorRT engines from the graphs of BUNDLE, on the machine that will run them."""
    from export.tensorrt.build import build as run
    from export.tensorrt.plan import BuildSettings

    settings = BuildSettings(profile, graphs, draft, capacities, floats, force)  # type: ignore[arg-type]
    signed = signer(secret)
    run(Bundle.open(bundle), settings, lambda sentence: click.echo(sentence, err=True))
    signed(bundle)


@click.command()
@bundle_argument()
@click.option("--verify", is_flag=True, help="Compare every file with its checksum.")
@click.option(
    "--verify-key",
    type=PATH,
    metavar="FILE",
    help="Also check that the owner of this public key signed the bundle; implies --verify.",
)
@json_option("Print the manifest as one JSON line.")
def inspect(bundle: Path, verify: bool, verify_key: Path | None, as_json: bool) -> None:
    """Show the content of BUNDLE."""
    from cli.bundle_view import inspect

    inspect(bundle, verify=verify, verify_key=verify_key, as_json=as_json)
