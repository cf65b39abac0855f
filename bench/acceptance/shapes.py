"""`edgespec bench shapes`: drafts of several depths for the built-in target, compared by speed.

Each draft is trained for the same number of steps on the same text, exported, and teacher-forced
along the target's answers to the held-out prompts, as in `edgespec bench acceptance`. Its step is
timed against the target's in the same run. Drafts are compared by their expected tokens/s under
streaming (`bench.acceptance.lockstep_rounds.expected_speed`). Existing drafts can be added.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.acceptance.candidate_drafts import ShapesSettings, candidate_drafts, exported
from bench.acceptance.draft_shape import DraftShape, Reference, measure, verify_ms
from bench.acceptance.run import encode
from bench.acceptance.teacher_forcing import BATCH_ROWS, TargetAnswer, write_answers
from bench.lab.builtin import builtin_bundle, weights_file
from bench.lab.prompts import first_of_each, read_prompts
from bench.lab.report import print_json
from bench.lab.tables import Column, table
from calibration.target import same_settings
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from edgespec.text import Codec
from engines.base import Engine
from engines.machine.doctor import describe
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from export.sources.open import open_checkpoint

COLUMNS = (
    Column("draft", "name", left=True),
    Column("layers", "layers"),
    Column("profile", "profile", left=True),
    Column("words", "words"),
    Column("MB", "megabytes", ".1f"),
    Column("agreement", "agreement", ".3f"),
    Column("with n-gram", "with_ngram", ".3f"),
    Column("accepted", "accepted", ".2f"),
    Column("length", "length"),
    Column("step ms", "step_ms", ".2f"),
    Column("of target", "step_ratio", ".2f"),
    Column("tokens/s", "tokens_per_s", ".1f", best="highest"),
)
MIN_CONSOLE_COLUMNS = 128


def run(settings: ShapesSettings, *, as_json: bool) -> None:
    """Measures and prints a table; with `as_json`, one JSON object is the last line."""
    _check(settings)
    bundle = builtin_bundle()
    target = load_target(bundle, OrtSettings(settings.threads, slots=BATCH_ROWS + 2))
    verify = verify_ms(target)
    reference = Reference(target, _answers(bundle, target, settings), verify, settings.threads)
    target_tokens_per_s = 1000 / verify[0]
    shapes = []
    for name, folder in candidate_drafts(settings):
        draft_bundle = exported(settings, name, folder)
        for profile in settings.profiles:
            shapes.append(measure(name, draft_bundle, profile, reference))
            Console(stderr=True).print(shapes[-1])
    console = Console()
    width = max(console.width, MIN_CONSOLE_COLUMNS)
    console.print(_table(shapes, target_tokens_per_s), width=width, crop=False)
    if as_json:
        print_json(
            {
                "shapes": shapes,
                "target_tokens_per_s": target_tokens_per_s,
                "verify_ms": verify,
                "steps": settings.steps,
                "machine": describe(),
            }
        )


def _check(settings: ShapesSettings) -> None:
    """Raises `UsageError` for settings that would fail after hours of training."""
    layers = open_checkpoint(str(weights_file())).architecture.layers
    wrong = [depth for depth in settings.depths if not 1 <= depth <= layers]
    if wrong:
        raise UsageError(f"--depths {wrong[0]} is none of the target's 1 to {layers} layers")
    if not settings.depths and not settings.drafts:
        raise UsageError("there is nothing to compare; pass --depths or --draft NAME=FOLDER")
    for name, _ in settings.drafts:
        if not name or "/" in name:
            raise UsageError(f"--draft {name!r} is no name; use letters, as in mine=FOLDER")
    stored: dict[str, object] = {
        "steps": settings.steps,
        "rate": settings.rate,
        "tokens": settings.tokens,
        "drafts": {name: str(path.resolve()) for name, path in settings.drafts},
    }
    same_settings(settings.work, "shapes.json", stored, f"{settings.work}", "--work")


def _answers(bundle: Bundle, target: Engine, settings: ShapesSettings) -> list[TargetAnswer]:
    """Greedy answers of the target to the held-out prompts."""
    prompts = first_of_each(read_prompts(None), settings.limit)
    ids = encode(bundle, Codec(bundle), prompts, settings.max_tokens)
    ends = bundle.manifest.text.end_ids
    written = write_answers(target, ids, lambda _: [Sampling()], settings.max_tokens, ends)
    return [answer for answer, _ in written]


def _table(shapes: Sequence[DraftShape], target_tokens_per_s: float) -> Table:
    alone = f"target alone: {target_tokens_per_s:.1f}"
    return table(f"drafts by expected tokens/s under streaming ({alone})", COLUMNS, shapes)
