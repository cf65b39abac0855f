"""Threads are measured, kept for this machine and bundle, and taken."""

import json

import pytest
from click.testing import CliRunner

from cli.main import main
from edgespec.errors import EngineError
from edgespec.manifest import Bundle
from engines import backends, tuning
from engines.machine import threads as kept
from engines.machine.threads import keep_threads, tuned_threads
from engines.toy import ToyEngine
from engines.tuning import Tuned, report, thread_counts, tune


class Slow(ToyEngine):
    def __init__(self, threads, ms):
        super().__init__()
        self.threads, self.ms = threads, ms


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def declared_times(monkeypatch):
    """Steps take the time that their engine declares."""
    monkeypatch.setattr(
        tuning,
        "medians_ms",
        lambda steps, repeats: {name: step._engine.ms for name, step in steps.items()},
    )


def tuned(times_ms):
    loaded = []

    def load(threads):
        loaded.append(threads)
        return Slow(threads, times_ms[threads])

    return tune("draft/x", load, 1, list(times_ms)), loaded


@pytest.mark.parametrize(
    ("times_ms", "threads", "loaded"),
    [
        ({1: 8.0}, 1, [1]),
        ({1: 8.0, 2: 6.0}, 2, [1, 2]),
        ({1: 8.0, 2: 7.7}, 1, [1, 2]),
        ({1: 8.0, 2: 6.0, 3: 5.8, 4: 1.0}, 2, [1, 2, 3]),
        ({1: 8.0, 2: 6.0, 3: 5.0, 4: 4.9}, 3, [1, 2, 3, 4]),
    ],
)
def test_no_more_threads_than_help(declared_times, times_ms, threads, loaded):
    found, opened = tuned(times_ms)
    assert (found.threads, opened) == (threads, loaded)
    assert found.times_ms == {count: times_ms[count] for count in loaded}


def test_real_steps_are_measured(monkeypatch):
    monkeypatch.setattr(tuning, "REPEATS", 2)
    found = tune("draft/x", lambda threads: ToyEngine(), 5, [1, 2])
    assert found.threads in (1, 2) and all(ms > 0 for ms in found.times_ms.values())


def test_thread_counts():
    assert thread_counts(1) == [1]
    assert thread_counts(4) == [1, 2, 3, 4]
    assert thread_counts(10) == [1, 2, 3, 4, 6, 8, 10]
    assert thread_counts(16) == [1, 2, 3, 4, 6, 8, 12, 16]


def test_numbers_hold_for_this_machine_and_bundle(tiny_bundle, tmp_path, monkeypatch):
    assert tuned_threads(tiny_bundle, "draft/cpu-fp32") == 0
    path = keep_threads(tiny_bundle, {"draft/cpu-fp32": 2})
    keep_threads(tiny_bundle, {"target/onnxruntime": 3})
    assert tuned_threads(tiny_bundle, "draft/cpu-fp32") == 2
    assert tuned_threads(tiny_bundle, "target/onnxruntime") == 3
    assert tuned_threads(tiny_bundle, "target/torch") == 0
    path.write_text(path.read_text().replace("3", "0"))
    assert tuned_threads(tiny_bundle, "draft/cpu-fp32") == 0, "damaged"
    keep_threads(tiny_bundle, {"draft/cpu-fp32": 2})
    monkeypatch.setattr(kept, "brief", lambda: "another machine")
    assert tuned_threads(tiny_bundle, "draft/cpu-fp32") == 0


def test_a_cache_that_cannot_be_written(tiny_bundle, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EngineError, match="cannot write"):
        keep_threads(tiny_bundle, {})


def test_a_draft_takes_them(tiny_bundle, monkeypatch):
    from engines.onnxruntime_backend import engine as backend

    taken = []
    monkeypatch.setattr(
        backend, "open_draft", lambda bundle, name, threads, slots, alone: taken.append(threads)
    )
    keep_threads(tiny_bundle, {"draft/cpu-fp32": 2})
    backends.open_draft(tiny_bundle, "cpu-fp32", 0, 1)
    backends.open_draft(tiny_bundle, "cpu-fp32", 5, 1)
    assert taken == [2, 5]


def test_the_command(tiny_bundle, monkeypatch, declared_times):
    def load(bundle, name, threads, *others, **more):
        if name == "torch":
            raise EngineError("no torch here")
        return Slow(threads, 8.0 / threads)

    monkeypatch.setattr(tuning, "open_draft", load)
    monkeypatch.setattr(tuning, "open_target", load)
    monkeypatch.setattr(tuning, "usable_cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 0.0, 0.0))
    folder = str(tiny_bundle.folder)
    result = CliRunner().invoke(main, ["doctor", "--tune", folder, "--backend", "torch"])
    assert result.exit_code == 0, result.output
    assert "draft/cpu-fp32  2 threads (8.0 ms with 1, 4.0 ms with 2)" in result.output
    assert "does not run here: no torch here" in result.output
    assert "the machine was busy (load 3.0)" in result.output
    assert tuned_threads(Bundle.open(tiny_bundle.folder), "draft/cpu-fp32") == 2
    both = CliRunner().invoke(main, ["doctor", "--tune", folder, "--exactness", folder])
    assert both.exit_code == 2


def test_the_report_and_json_name_every_model():
    lines = report([Tuned("draft/a", 1, {1: 3.0}), Tuned("target/b", 0, {}, "why")]).splitlines()
    assert lines == ["draft/a   1 thread (3.0 ms with 1)", "target/b  does not run here: why"]
    assert json.loads(json.dumps(Tuned("draft/a", 1, {1: 3.0})._asdict()))["threads"] == 1
