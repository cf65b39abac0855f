"""`bench chaos`: faults at random, and exact answers."""

from __future__ import annotations

import click

from cli.options import DEVICES_COUNT, POSITIVE, FiniteRange, json_option

MINUTES = FiniteRange(0.05, 24 * 60)


@click.command()
@click.option(
    "--minutes", type=MINUTES, default=1.0, show_default=True, help="Time in which faults come."
)
@click.option(
    "-s", "--seed", type=int, default=0, show_default=True, help="Decides the faults and requests."
)
@click.option(
    "--devices", type=DEVICES_COUNT, default=3, show_default=True, help="Devices of each cloud."
)
@click.option(
    "--answers", type=POSITIVE, default=2, show_default=True, help="Answers of a device at once."
)
@json_option()
def chaos(as_json: bool, minutes: float, seed: int, devices: int, answers: int) -> None:
    """Kill, pause and attack real processes; every answer must be the target's.

    Runs two toy clouds, one of them with keys, and devices on links that are cut, stall and
    fragment. The exit code is 1 if a token was wrong or an answer was lost.
    """
    from bench.chaos.run import run
    from bench.chaos.settings import ChaosSettings

    run(ChaosSettings(minutes, seed, devices, answers), as_json=as_json)
