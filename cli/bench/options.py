"""Options that several benches share."""

from __future__ import annotations

import click

from cli.options import PATH, FiniteRange, NumberList

SECONDS = FiniteRange(0, 3600)
DEVICE_COUNTS = NumberList(int, "numbers from 1 to 2000", "8,16,24", at_least=1, at_most=2000)
PROMPTS = click.option(
    "--prompts",
    type=PATH,
    metavar="FILE",
    show_default="the built-in held-out set",
    help='Prompts as JSON lines with "prompt" and "category".',
)
DRAFT_LENGTH = click.option(
    "--draft-length",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Tokens drafted per round in lockstep.",
)
FLEET_PROFILE = click.option(
    "--profile",
    type=PATH,
    metavar="FILE",
    show_default="built in",
    help="Profile of the fleet: its devices, links and target rate.",
)
RECORDING = click.option(
    "--recording",
    type=PATH,
    metavar="FILE",
    show_default="the profile's",
    help="Recorded answers of the pair, written by 'bench plan --record'.",
)
METHODS = click.option(
    "--method",
    "methods",
    multiple=True,
    show_default="all",
    help="Method to measure; may be repeated.",
)
