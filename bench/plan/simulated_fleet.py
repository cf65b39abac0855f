"""One simulated fleet: a method, a target rate and a number of devices."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from types import MappingProxyType

from bench.fleet.search import MAX_FIRST_TOKEN_S
from bench.lab.methods import CLOUD, CLOUD_DRAFT, EDGESPEC, LOCKSTEP, METHODS
from bench.lab.percentile import percentile
from bench.lab.profiles import Profile
from bench.lab.recording import Recording
from bench.plan.figures import FleetFigures
from bench.simulation.simulate import SimulatedDevice, simulate_fleet
from bench.simulation.stats import FleetStats
from edgespec.config import CloudSettings, EdgeSettings

ARRIVAL_S = 1.0
"""Time within which all devices connect."""
LOCKSTEP_ALONE = f"{LOCKSTEP} one at a time"
"""Lockstep with batches of one session; `lockstep` itself batches sessions."""
FLEET_METHODS = MappingProxyType(
    {
        CLOUD: METHODS[CLOUD],
        CLOUD_DRAFT: METHODS[CLOUD_DRAFT],
        LOCKSTEP_ALONE: METHODS[LOCKSTEP],
        LOCKSTEP: METHODS[LOCKSTEP],
        EDGESPEC: METHODS[EDGESPEC],
    }
)


@dataclass(frozen=True)
class FleetRun:
    """Conditions that all fleets of a plan share. Times in virtual seconds."""

    rtts_ms: tuple[float, ...] = (25.0,)
    """Round-trip times; device n has number n modulo their count."""
    seconds: float = 10.0
    """Duration of each run."""
    warm_up: float = 3.0
    """Beginning of each run that the figures leave out."""
    think_seconds: float = 0.0
    """Mean pause of a device between two answers."""
    seed: int = 0


def run_fleet(
    profile: Profile,
    recording: Recording,
    method: str,
    run: FleetRun,
    target_rate: float,
    devices: int,
) -> FleetFigures:
    """Simulates `devices` devices on one cloud, each with that target rate in tokens/s."""
    cloud = CloudSettings(
        max_sessions=2 * devices, max_batch_rows=1 if method == LOCKSTEP_ALONE else 0
    )
    stats = simulate_fleet(
        recording,
        profile.times(0.0),
        _devices(profile, method, run, target_rate, devices),
        cloud=cloud,
        seconds=run.seconds,
        warm_up=run.warm_up,
        seed=run.seed,
    )
    return _figures(stats, target_rate)


def _devices(
    profile: Profile, name: str, run: FleetRun, target_rate: float, count: int
) -> list[SimulatedDevice]:
    method, chance = FLEET_METHODS[name], random.Random(run.seed)
    settings = EdgeSettings(
        mode=method.mode,
        tactics=method.tactics,
        draft_length=profile.draft_length,
        target_rate=target_rate,
    )
    device = SimulatedDevice(
        settings,
        profile.draft_ms,
        batch=profile.batch,
        drafts=method.drafts_on_device,
        think_seconds=run.think_seconds,
    )
    return [
        replace(
            device,
            rtt_ms=run.rtts_ms[number % len(run.rtts_ms)],
            start=chance.uniform(0, ARRIVAL_S),
        )
        for number in range(count)
    ]


def _figures(stats: FleetStats, target_rate: float) -> FleetFigures:
    rates = stats.rates
    return FleetFigures(
        devices=len(rates),
        served=round(stats.served(target_rate, MAX_FIRST_TOKEN_S), 4),
        tokens_per_s=round(sum(rates) / len(rates), 3),
        p5_tokens_per_s=round(percentile(rates, 0.05), 3),
        p95_first_token_ms=round(1e3 * percentile(stats.first_tokens, 0.95), 1),
        busy=round(stats.busy, 3),
        drafting=round(stats.drafting, 3),
        handling=round(stats.handling, 3),
        rows=round(stats.mean_batch_rows, 2),
    )
