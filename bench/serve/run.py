"""`edgespec bench serve`: the HTTP server's own cost, many streams, memory, and bad requests.

    beside      the server and the client that it is made of write the same answers in turns
    together    streams at once, each with the text of one alone
    memory      of the server, over many requests
    fuzz        bad requests drawn at random (--fuzz)

Device and cloud have a core each. The target is a layer of random weights unless a bundle is given:
beside a real one, whose steps vary by more than the server costs, nothing could be seen.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from bench.lab.processes import cloud, cores, pinned
from bench.lab.report import print_json
from bench.lab.tables import Column, table
from bench.serve.beside import beside, body
from bench.serve.figures import ServeFigures
from bench.serve.fuzz import fuzz
from bench.serve.http_client import streamed
from bench.serve.load import memory, together
from bench.serve.server import server
from bench.serve.settings import ServeSettings
from bench.serve.tiny_target import tiny_bundle
from edge_runtime.client import Client
from edgespec.config import EdgeSettings
from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from engines.machine.doctor import describe

LEAST_WIDTH_COLUMNS = 100


def run(settings: ServeSettings, *, as_json: bool) -> None:
    """Measure and print. Raises `EdgespecError` if a text is wrong or a bad request is not
    refused in order."""
    with tempfile.TemporaryDirectory(prefix="edgespec-serve-") as scratch:
        given = settings.bundle
        figures = measure(Bundle.open(given) if given else tiny_bundle(Path(scratch)), settings)
    show(figures)
    if as_json:
        print_json(figures)
    if figures.together and not figures.together.identical:
        raise EdgespecError("streams at once have other texts than one alone")
    if figures.fuzz and figures.fuzz.failures:
        raise EdgespecError(f"bad requests: {figures.fuzz.failures[0]}")


def measure(bundle: Bundle, settings: ServeSettings) -> ServeFigures:
    machine = describe()  # before this process has one core
    with cloud(bundle.folder) as endpoint, pinned(cores()[0]):
        edge = EdgeSettings(connect=endpoint, threads=1)
        with server(bundle.folder, endpoint) as serving:
            with Client(bundle, edge) as client:
                found = beside(client, serving, settings)
            alone = streamed(serving.url, body(settings)).text
            figures = ServeFigures(
                machine=machine,
                target=bundle.manifest.target.origin.name,
                beside=found,
                together=together(serving, settings) if settings.streams else None,
                memory=memory(serving, settings) if settings.requests else None,
                fuzz=fuzz(serving, settings.fuzz, settings.seed) if settings.fuzz else None,
            )
            if streamed(serving.url, body(settings)).text != alone:
                raise EdgespecError("the server's text has changed")
    return figures


def show(figures: ServeFigures) -> None:
    console = Console(width=max(Console().width, LEAST_WIDTH_COLUMNS), highlight=False)
    both = figures.beside
    columns = (
        Column("", "name", left=True),
        Column("first token ms", "first_token_ms", ".2f"),
        Column("a token ms", "token_ms", ".3f"),
        Column("processor, a token ms", "cpu_token_ms", ".3f"),
    )
    caption = (
        f"the server adds {both.first_token_added_ms:.2f} ms to the first token and "
        f"{both.token_added_ms:.3f} ms to each token"
    )
    title = f"beside the client, target {figures.target}"
    console.print(table(title, columns, [both.client, both.server], caption=caption))
    for sentence in _sentences(figures):
        console.print(sentence, markup=False)


def _sentences(figures: ServeFigures) -> list[str]:
    found = []
    if many := figures.together:
        same = "all the same text" if many.identical else "TEXTS DIFFER"
        found.append(
            f"{many.streams} streams at once: {same}, {many.tokens_per_second:.0f} tokens/s, the "
            f"slowest first token after {many.slowest_first_token_ms:.0f} ms"
        )
    if kept := figures.memory:
        found.append(
            f"memory: {kept.before_mb:.1f} MB after a tenth of {kept.requests} requests, "
            f"{kept.growth_mb:+.1f} MB after all ({kept.requests_per_second:.0f} requests/s)"
        )
    if bad := figures.fuzz:
        counts = ", ".join(f"{status}: {count}" for status, count in bad.statuses.items())
        found.append(f"{bad.requests} bad requests: {counts}")
        found += bad.failures
    return found
