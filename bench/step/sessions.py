"""Runtimes seen from outside a back end: the time in their calls, and the nodes that they run.

Both replace methods of `onnxruntime.InferenceSession` for a while, so that they hold for every way
in which a back end makes and runs its sessions. What a back end loads meanwhile is the same.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import onnxruntime

RUN_METHODS = ("run", "run_with_iobinding")
_SESSION: Any = onnxruntime.InferenceSession


class SessionClock:
    """Seconds that all calls of ONNX Runtime and of llama.cpp have taken."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            before = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - before

        return call


@contextmanager
def session_clock() -> Iterator[SessionClock]:
    """Measures the calls of the sessions that are made in the block."""
    clock = SessionClock()
    with ExitStack() as stack:
        for name in RUN_METHODS:
            stack.enter_context(_replaced(_SESSION, name, clock.timed(getattr(_SESSION, name))))
        with suppress(ImportError):
            import llama_cpp

            decode = clock.timed(llama_cpp.llama_decode)
            stack.enter_context(_replaced(llama_cpp, "llama_decode", decode))
        yield clock


class SessionProfiles:
    """Sessions that write profiles, and those that have run since `restart`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self._runs: Counter[Any] = Counter()

    def restart(self) -> None:
        self._runs.clear()

    def nodes(self) -> Counter[str]:
        """Ends the profiles. Returns the number of nodes that have run, by operator."""
        found: Counter[str] = Counter()
        for session, runs in self._runs.items():
            events = json.loads(Path(session.end_profiling()).read_text())
            found += operators_of_runs(events, runs)
        return found

    def making(self, make: Callable[..., None]) -> Callable[..., None]:
        @wraps(make)
        def call(
            session: Any, model: Any, sess_options: Any = None, *arguments: Any, **options: Any
        ) -> None:
            chosen = sess_options or onnxruntime.SessionOptions()
            chosen.enable_profiling = True
            chosen.profile_file_prefix = str(self._folder / f"profile-{self._made}")
            self._made += 1
            make(session, model, chosen, *arguments, **options)

        return call

    def running(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(run)
        def call(session: Any, *arguments: Any, **options: Any) -> Any:
            self._runs[session] += 1
            return run(session, *arguments, **options)

        return call


@contextmanager
def session_profiles(folder: Path) -> Iterator[SessionProfiles]:
    """Profiles the sessions that are made in the block, into files of `folder`."""
    profiles = SessionProfiles(folder)
    with ExitStack() as stack:
        stack.enter_context(_replaced(_SESSION, "__init__", profiles.making(_SESSION.__init__)))
        for name in RUN_METHODS:
            stack.enter_context(
                _replaced(_SESSION, name, profiles.running(getattr(_SESSION, name)))
            )
        yield profiles


def operators_of_runs(events: list[dict[str, Any]], runs: int) -> Counter[str]:
    """Nodes by operator of the last `runs` runs in a profile of ONNX Runtime.

    A profile is a list of events with begin `ts` and duration `dur` in microseconds: `model_run`
    for a run, and one of the category `Node` for the kernel of each node.
    Source: https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html.
    """
    started = sorted(event["ts"] for event in events if event["name"] == "model_run")
    first_us = started[-runs] if runs <= len(started) else 0
    return Counter(
        event["args"]["op_name"]
        for event in events
        if event["cat"] == "Node"
        and event["name"].endswith("_kernel_time")
        and event["ts"] >= first_us
    )


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replaces a function of a module or a method of a class, which may inherit it."""
    own = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
