"""`bench export` and `bench load`: memory of exporting and of loading a target."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import POSITIVE, PRECISIONS, bundle_argument, json_option, threads_option


@click.command()
@click.option(
    "--model",
    type=click.Choice(["1b", "3b", "7b"]),
    default="1b",
    show_default=True,
    help="Shapes of TinyLlama-1.1B, Llama-3.2-3B or Llama-2-7B, in fp16.",
)
@click.option(
    "--segments", type=POSITIVE, default=8, show_default=True, help="Segments of the target."
)
@click.option(
    "--precision",
    "precisions",
    type=PRECISIONS,
    multiple=True,
    show_default="fp16, and for 1b also int4",
    help="Precision of the exported layers; may be repeated.",
)
@click.option("--load", is_flag=True, help="Also measure loading each bundle, as 'bench load'.")
@json_option()
def export(
    model: str, segments: int, precisions: tuple[str, ...], load: bool, as_json: bool
) -> None:
    """Peak memory and time of exporting a Llama of random fp16 weights.

    Writes the checkpoint and one bundle into the temporary folder (TMPDIR), 27 GB for 7b, and
    removes them. The exit code is 1 if the peak exceeds three layers' weights and 300 MB.
    """
    from bench.memory.export import ExportBench, run

    chosen = precisions or (("fp16", "int4") if model == "1b" else ("fp16",))
    if not run(ExportBench(model, segments, chosen, load), as_json=as_json):
        raise click.exceptions.Exit(1)


@click.command()
@bundle_argument(required=False)
@threads_option("Threads of the target.")
@json_option()
def load(bundle: Path | None, threads: int, as_json: bool) -> None:
    """Memory that loading a target takes, compared with the size of its weights.

    Without BUNDLE the built-in pair is measured.
    """
    from bench.lab.builtin import builtin_bundle
    from bench.memory.load import run
    from edgespec.manifest import Bundle

    if not run(Bundle.open(bundle) if bundle else builtin_bundle(), threads, as_json=as_json):
        raise click.exceptions.Exit(1)
