"""Commands of the device's side: `edge-run` and `verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from cli.options import (
    EDGE,
    PATH,
    bundle_argument,
    bundle_key_option,
    check_offline,
    connect_option,
    connect_timeout_option,
    device_key_option,
    drafter_option,
    energy_options,
    energy_root,
    give_up_option,
    json_option,
    max_tokens_option,
    mode_option,
    offline_options,
    read_text,
    seed_option,
    server_key_option,
    threads_option,
    trace_option,
)
from edgespec.config import EdgeSettings, PreDraft, Tactics

SAMPLING_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
"""Options of `edge-run` that are fields of `Sampling`."""


@click.command("edge-run")
@bundle_argument()
@connect_option(EDGE.connect, metavar="ENDPOINT", help="Endpoint of the cloud.")
@server_key_option
@device_key_option
@bundle_key_option
@click.option("-p", "--prompt", show_default="standard input", help="Text to answer.")
@click.option("--chat", is_flag=True, help="Apply the chat template; on a terminal, converse.")
@click.option("--system", default="", help="System message of the chat.")
@max_tokens_option(256)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="Sampling temperature; 0 is greedy.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample among the likeliest tokens whose probabilities reach this sum.",
)
@click.option(
    "--top-k",
    type=int,
    default=0,
    show_default=True,
    help="Sample among this many of the likeliest tokens; 0 keeps all.",
)
@click.option(
    "--min-p",
    type=float,
    default=0.0,
    show_default=True,
    help="Sample among tokens with at least this fraction of the likeliest one's probability.",
)
@click.option(
    "--presence-penalty",
    type=float,
    default=0.0,
    show_default=True,
    help="Subtract this from the logits of tokens that the answer has.",
)
@click.option(
    "--frequency-penalty",
    type=float,
    default=0.0,
    show_default=True,
    help="The same, for each time that the answer has the token.",
)
@click.option(
    "--repetition-penalty",
    type=float,
    default=1.0,
    show_default=True,
    help="Divide the positive logits of tokens in prompt and answer, and multiply negative ones.",
)
@seed_option("Seed of sampling; the same seed gives the same answer.")
@click.option("--stop", "stops", multiple=True, help="End at this text; may be repeated.")
@click.option(
    "--json-schema",
    type=PATH,
    metavar="FILE",
    help="Answer with JSON of this schema; needs the extra 'grammar', as do the next two.",
)
@click.option("--regex", metavar="TEXT", help="Answer with a text that this expression matches.")
@click.option(
    "--grammar",
    type=PATH,
    metavar="FILE",
    help="Answer with a text of this grammar: Lark as llguidance has it, or GBNF.",
)
@drafter_option
@mode_option
@click.option(
    "--pre-draft",
    type=click.Choice(get_args(PreDraft)),
    default=EDGE.tactics.pre_draft,
    show_default=True,
    help="What to draft while a verdict is awaited; exits and none wait in lockstep.",
)
@click.option(
    "--branches/--no-branches",
    default=EDGE.tactics.branches,
    show_default=True,
    help="With tree, also draft for tokens that the target may choose instead.",
)
@click.option(
    "--hints/--no-hints",
    default=None,
    show_default="where they cost the cloud little",
    help="Ask the cloud for hints of its exit heads.",
)
@click.option(
    "--lockstep/--no-lockstep",
    default=None,
    show_default="only if --pre-draft waits",
    help="Let the target wait for each draft instead of decoding meanwhile.",
)
@click.option(
    "--draft-length",
    type=click.IntRange(1, 64),
    default=EDGE.draft_length,
    show_default=True,
    help="Tokens drafted per round in lockstep.",
)
@click.option(
    "--session",
    type=PATH,
    metavar="FILE",
    help="Keep the answer in this file; after a crash the same command goes on where it was.",
)
@click.option("--explain", is_flag=True, help="Print which mode is used, and why.")
@trace_option
@threads_option("Threads of the draft.", automatic="tuned, or the profile's")
@connect_timeout_option
@give_up_option
@offline_options
@click.option(
    "--target-rate",
    type=click.FloatRange(0.0, 1e6, max_open=True),
    default=EDGE.target_rate,
    show_default="as fast as possible",
    help="Tokens a second that are enough; a slower session then goes first in the cloud.",
)
@energy_options
@click.option("--show-drafts", is_flag=True, help="Colour accepted and corrected tokens.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the answer and errors.")
@json_option("Print the figures as one JSON line to standard error.")
def edge_run(bundle: Path, **options: Any) -> None:
    """Answer a prompt on this device, with the target in the cloud."""
    check_offline(options)
    from edge_runtime.terminal import TextSettings, edge_run
    from edgespec.grammar import chosen_grammar
    from edgespec.manifest import Bundle
    from edgespec.sampling import Sampling

    text = TextSettings(
        prompt=options["prompt"],
        chat=options["chat"],
        system=options["system"],
        max_tokens=options["max_tokens"],
        sampling=Sampling(**{name: options[name] for name in SAMPLING_OPTIONS}),
        stops=options["stops"],
        grammar=chosen_grammar(
            read_text(options["json_schema"]), options["regex"], read_text(options["grammar"])
        ),
        show_drafts=options["show_drafts"],
        json=options["as_json"],
        explain=options["explain"],
        session=options["session"],
        quiet=options["quiet"],
    )
    settings = EdgeSettings(
        connect=options["connect"],
        server_key=options["server_key"],
        key=options["key"],
        drafter=options["drafter"],
        mode=options["mode"],
        tactics=Tactics(
            options["pre_draft"], options["branches"], options["hints"], options["lockstep"]
        ),
        draft_length=options["draft_length"],
        trace=options["trace"],
        threads=options["threads"],
        connect_timeout=options["connect_timeout"],
        give_up=options["give_up"],
        offline=options["offline"],
        offline_after=options["offline_after"],
        target_rate=options["target_rate"],
        energy=energy_root(options),
    )
    edge_run(Bundle.open(bundle, options["bundle_key"]), settings, text)


@click.command()
@bundle_argument()
@connect_option(EDGE.connect, metavar="ENDPOINT", help="Endpoint of the cloud.")
@server_key_option
@device_key_option
@bundle_key_option
@click.option(
    "--prompts",
    type=PATH,
    metavar="FILE",
    show_default="a few built-in ones",
    help='Prompts as JSON lines, each {"prompt": "…"}.',
)
@click.option("--chat", is_flag=True, help="Apply the chat template to each prompt.")
@max_tokens_option(64)
@seed_option("Seed of the sampled answers.")
@drafter_option
@threads_option("Threads of the draft.", automatic="tuned, or the profile's")
@click.option(
    "--local",
    is_flag=True,
    help="Compare with the bundle's target on this machine, not with the cloud's alone.",
)
@json_option("Print one JSON line instead of the report.")
def verify(bundle: Path, **options: Any) -> None:
    """Prove that every mode gives the target's own answers, token by token.

    Each prompt is answered greedily and sampled, in every mode. The exit code is 1 if any answer
    differs from that of the target alone.
    """
    from edge_runtime.proof_report import as_json, show
    from edge_runtime.verify import VerifySettings, verify
    from edgespec.manifest import Bundle

    settings = VerifySettings(
        options["prompts"], options["chat"], options["max_tokens"], options["seed"],
        options["local"],
    )  # fmt: skip
    edge = EdgeSettings(
        connect=options["connect"],
        server_key=options["server_key"],
        key=options["key"],
        drafter=options["drafter"],
        threads=options["threads"],
    )
    proof = verify(Bundle.open(bundle, options["bundle_key"]), edge, settings)
    if options["as_json"]:
        click.echo(as_json(proof))
    else:
        show(proof)
    if not proof.identical:
        sys.exit(1)
