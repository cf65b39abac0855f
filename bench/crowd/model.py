"""How well a new cloud predicts the times of its steps."""

from __future__ import annotations

from bench.crowd.cloud import Crowd, tell
from bench.crowd.figures import ModelPart, Phase
from bench.lab.methods import EDGESPEC

PHASE_DEVICES_COUNT = (1, 12, 4, 24, 8)
"""Devices of each phase."""
PHASE_S, ARRIVE_S = 8.0, 1.0


def crowd_model(crowd: Crowd) -> ModelPart:
    """Prediction errors of a new cloud, after phases with different numbers of devices."""
    phases = []
    with crowd.cloud(min(PHASE_S, crowd.settings.seconds), ARRIVE_S) as served:
        for devices in PHASE_DEVICES_COUNT:
            tell(f"steps with {devices} devices")
            served.generator.measure(EDGESPEC, devices)
            sample = served.sample()
            phase = Phase(
                devices=devices,
                steps=sample["step_seconds_count", ""],
                error=sample["step_error_ratio", ""],
                prompt_error=sample["prompt_step_error_ratio", ""],
            )
            phases.append(phase)
    return ModelPart(
        step_error=phase.error, prompt_step_error=phase.prompt_error, steps=phase.steps,
        model=phases,
    )  # fmt: skip
