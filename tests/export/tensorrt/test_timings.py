"""Timings are kept by version and GPU, and a file that is no good is done without."""

import warnings
from dataclasses import replace

import pytest

from engines.tensorrt_backend.api import Installation, load, make_builder
from export.tensorrt.timings import load_timings, save_timings, timings_file

pytest.importorskip("tensorrt_rtx")
HERE = Installation("tensorrt", "10.3", "8.7", "linux-aarch64")


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    builder = make_builder(load())
    with warnings.catch_warnings():  # RTX has the calls, and calls them deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        yield builder.create_builder_config()


def test_timings_are_kept(config):
    load_timings(config, HERE)
    save_timings(config, HERE)
    kept = timings_file(HERE).read_bytes()
    assert kept
    load_timings(config, HERE)
    save_timings(config, HERE)
    assert timings_file(HERE).read_bytes() == kept


def test_a_damaged_file_is_replaced(config):
    timings_file(HERE).parent.mkdir(parents=True)
    timings_file(HERE).write_bytes(b"no timings")
    load_timings(config, HERE)
    save_timings(config, HERE)
    assert timings_file(HERE).read_bytes() != b"no timings"


def test_another_version_and_another_gpu_have_other_files():
    others = [replace(HERE, version="11.4"), replace(HERE, capability="11.0")]
    assert len({timings_file(here) for here in [HERE, *others]}) == 3


def test_a_cache_that_cannot_be_written_is_done_without(config, tmp_path):
    (tmp_path / "edgespec").write_text("in the way")
    load_timings(config, HERE)
    save_timings(config, HERE)
