"""Every profile's file holds together, and says where its numbers come from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

import pytest

from edgespec.errors import UsageError
from edgespec.manifest import MAIN_OPSET
from engines.machine import profiles
from engines.machine.profiles import ONNX_RUNTIME, profile

HARDWARE = {"rpi4", "rpi5", "jetson-orin", "jetson-orin-jp7", "jetson-thor", "x86-cpu", "cuda"}
UNSOURCED = {"purpose", "backend", "layers", "providers", "instead", "sources"}
"""Words, not numbers; `layers` of hardware has a source all the same."""


def written(name: str) -> Any:
    return json.loads(
        resources.files("engines.machine.profiles").joinpath(f"{name}.json").read_text()
    )


def ascending(values: Iterable[int]) -> bool:
    listed = list(values)
    return listed == sorted(listed) and listed[0] > 0


def test_the_hardware_that_there_is() -> None:
    assert set(profiles.names()) >= HARDWARE
    generic = [name.startswith(("cpu-", "gpu-")) for name in profiles.names()]
    assert generic == sorted(generic, reverse=True)


@pytest.mark.parametrize("name", profiles.names())
def test_every_number_that_is_not_a_default_has_a_source(name: str) -> None:
    fields, sources = written(name), profile(name).sources
    defaults = {field: value for field, value in fields.items() if value == 0}
    assert set(fields) - UNSOURCED - set(defaults) <= set(sources)
    assert set(sources) <= set(fields)
    if name in HARDWARE:
        assert "layers" in sources


@pytest.mark.parametrize("name", profiles.names())
def test_numbers_are_in_order(name: str) -> None:
    chosen = profile(name)
    assert chosen.opset in ONNX_RUNTIME
    for values in (chosen.capacities, chosen.batch, chosen.tokens):
        assert ascending(values)
    assert (chosen.backend == "tensorrt") is bool(chosen.tensorrt)


@pytest.mark.parametrize("name", profiles.names())
def test_what_does_instead_is_generic_and_runs_anywhere(name: str) -> None:
    instead = profile(name).instead
    assert instead
    assert name not in instead
    assert all(profile(other).signs == profiles.Signs() for other in instead)


@pytest.mark.parametrize("name", sorted(HARDWARE))
def test_hardware_has_signs_that_tell_it_from_the_rest(name: str) -> None:
    signs = profile(name).signs
    assert signs.boards or signs.capability or signs.features
    others = [profile(other).signs for other in HARDWARE if other != name]
    assert signs not in others


def test_compat_profiles_are_those_whose_runtimes_lack_the_main_opset() -> None:
    below = {name for name in profiles.names() if profile(name).opset < MAIN_OPSET}
    assert below == {"cpu-compat", "jetson-orin"}


def test_no_int8_where_it_would_be_unpacked_at_every_call() -> None:
    for name in ("rpi4", "cpu-compat"):
        used = profile(name).precisions
        assert "int8" not in (used.layers, used.head)


@pytest.mark.parametrize("name", profiles.refused())
def test_refused_hardware_says_what_to_use_instead(name: str) -> None:
    with pytest.raises(UsageError, match=r"^there is no profile .*; use a .*profile rpi5"):
        profile(name)
    assert name not in profiles.names()


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="choose from cpu-compat, cpu-fp32"):
        profile("toaster")
