"""Drafts that are not whole without their target: shared embeddings, trimmed vocabularies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from edgespec.config import Request
from edgespec.errors import CheckpointError, UsageError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from edgespec.tokenizer import fingerprint
from engines.base import Choices, Row, final_choices
from engines.drafters.base import draft_tokens
from engines.drafters.model import ModelDrafter
from engines.machine.profiles import precisions
from engines.onnxruntime_backend.engine import OrtSettings, load_draft, load_target
from export.bundle import ExportSettings, export
from export.sources.open import open_checkpoint

LENT = ("model.embed_tokens.weight", "lm_head.weight")
KEPT = np.sort(np.random.default_rng(4).permutation(300)[:90])


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tie(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, tie_word_embeddings=True)


def share(folder: Path) -> None:
    """Leaves out what the target has."""
    mark = fingerprint(Tokenizer.from_file(str(folder / "tokenizer.json")))
    tensors = load_file(folder / "model.safetensors")
    rest = {name: values for name, values in tensors.items() if name not in LENT}
    save_file(rest, folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    edit(folder, edgespec={"shares_embedding_of": mark, "recipe": {"layers": [0, 2]}})


def trim(folder: Path, kept: np.ndarray, declared: object = None) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "edgespec.kept_ids": kept}, folder / "model.safetensors")
    old = json.loads((folder / "config.json").read_text()).get("edgespec", {})
    vocabulary = len(kept) if declared is None else declared
    edit(folder, edgespec={**old, "vocabulary": vocabulary})


@pytest.fixture
def target(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama_folder, tmp_path / "target")


@pytest.fixture
def draft(target: Path, tmp_path: Path) -> Path:
    return shutil.copytree(target, tmp_path / "draft")


def bundled(target: Path, draft: Path, *profiles: str) -> Bundle:
    drafts = tuple((profile, str(draft)) for profile in profiles or ("cpu-fp32",))
    out = draft.parent / f"{draft.name}-bundle"
    return export(ExportSettings(str(target), out, drafts=drafts, force=True))


def outputs(bundle: Bundle, profile: str) -> Choices:
    engine = load_draft(bundle, profile, OrtSettings(min_tokens=1))
    (choices,) = final_choices(engine, [Row(engine.open(), 0, list(range(3, 43)), 40)])
    assert choices is not None
    return choices


@pytest.mark.parametrize("tied", [False, True])
def test_a_draft_with_its_targets_embedding_is_the_whole_draft(
    target: Path, draft: Path, tied: bool
) -> None:
    if tied:
        tie(target)
        tie(draft)
    whole = outputs(bundled(target, draft), "cpu-fp32")
    share(draft)
    bundle = bundled(target, draft)
    np.testing.assert_array_equal(outputs(bundle, "cpu-fp32").logits, whole.logits)
    assert bundle.manifest.drafts["cpu-fp32"].vocabulary == 300
    checkpoint = open_checkpoint(str(draft), base=open_checkpoint(str(target)))
    assert checkpoint.nbytes(LENT[0]) == checkpoint.tensor(LENT[0]).nbytes == 300 * 64 * 4
    np.testing.assert_array_equal(checkpoint.rows(LENT[0], 7, 9), checkpoint.tensor(LENT[0])[7:9])


def test_transformers_passes_over_our_notes(draft: Path) -> None:
    trim(draft, KEPT)
    model = transformers.AutoModelForCausalLM.from_pretrained(draft)
    assert model.config.vocab_size == 300


def test_a_shared_draft_alone_is_told_what_it_is(draft: Path) -> None:
    share(draft)
    with pytest.raises(UsageError, match="edgespec export TARGET --draft"):
        export(ExportSettings(str(draft), draft.parent / "out"))


def test_another_target_is_refused(target: Path, draft: Path) -> None:
    share(draft)
    for changes, named in [
        ({"hidden_size": 32, "head_dim": 16}, r"another hidden size \(32\)"),
        ({"vocab_size": 301}, r"another vocabulary \(301\)"),
        ({"tie_word_embeddings": True}, "another tie"),
    ]:
        other = shutil.copytree(draft, draft.parent / "other", dirs_exist_ok=True)
        edit(other, **changes)
        with pytest.raises(UsageError, match=named):
            bundled(target, other)
    edit(draft, edgespec={"shares_embedding_of": "0" * 64})
    with pytest.raises(UsageError, match="another tokenizer than target has"):
        bundled(target, draft)


@pytest.mark.parametrize("notes", [[1], {"vocabulary": "many"}, {"shares_embedding_of": 3}])
def test_malformed_notes(draft: Path, notes: object) -> None:
    edit(draft, edgespec=notes)
    with pytest.raises(CheckpointError, match="entry 'edgespec' that cannot be read"):
        open_checkpoint(str(draft))


def without_the_others(whole: Choices, kept: np.ndarray, top: int) -> dict[str, Any]:
    logits = whole.logits[:, kept]
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    everything = np.full_like(whole.logits, -np.inf)
    everything[:, kept] = logits
    return {
        "argmax": kept[logits.argmax(-1)],
        "top_logits": np.take_along_axis(logits, order, axis=-1),
        "top_ids": kept[order],
        "logits": everything,
    }


@pytest.mark.parametrize("count", [90, 40], ids=["90 kept", "fewer than TOP"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("profile", ["cpu-fp32", "gpu-fp16", "cpu-int8", "cpu-int4"])
def test_a_trimmed_head_is_the_whole_one_without_the_other_ids(
    target: Path, draft: Path, profile: str, tied: bool, count: int
) -> None:
    if tied:
        tie(target)
        tie(draft)
    whole = outputs(bundled(target, draft, profile), profile)
    share(draft)
    trim(draft, KEPT[:count])
    bundle = bundled(target, draft, profile)
    assert bundle.manifest.drafts[profile].vocabulary == count
    assert bundle.manifest.drafts[profile].architecture.vocabulary == 300
    trimmed = outputs(bundle, profile)
    expected = without_the_others(whole, KEPT[:count], min(64, count))
    assert trimmed.finite
    for name, values in expected.items():
        actual = getattr(trimmed, name)
        assert actual.shape == values.shape
        if name in ("argmax", "top_ids") and profile == "gpu-fp16":
            continue  # fp16 has ties, and top-k no order among them
        np.testing.assert_allclose(actual, values, rtol=2e-3, atol=2e-3)


def test_answers_with_a_trimmed_draft(target: Path, draft: Path, house: Any) -> None:
    trim(draft, KEPT.astype(np.int32))
    bundle = bundled(target, draft)
    home = house(load_target(bundle, OrtSettings()))
    engine = load_draft(bundle, "cpu-fp32", OrtSettings(min_tokens=1))
    kept = set(KEPT.tolist())
    for sampling in (
        Sampling(),
        Sampling(1.0, seed=3),
        Sampling(0.7, 0.9, seed=4),
        Sampling(1.5, 1.0, 200, 5),
        Sampling(5.0, 0.99, 150, 6),
    ):
        drafter = ModelDrafter(engine, "trimmed")
        request = Request((5, 6, 7), 30, sampling)
        answer = home.answer(drafter, request)
        assert answer.stats.token_ids == home.alone(request)
        drafter.retain(())
        assert set(draft_tokens(drafter, [5, 6, 7, 8], 20, sampling)) <= kept
        drafter.retain(())


def test_a_trimmed_target_is_refused(draft: Path) -> None:
    trim(draft, KEPT)
    with pytest.raises(UsageError, match="trimmed vocabulary, so it can only be a draft"):
        export(ExportSettings(str(draft), draft.parent / "out"))


@pytest.mark.parametrize(
    ("kept", "declared"),
    [
        (KEPT, 91),
        (KEPT, 0),
        (KEPT[::-1].copy(), None),
        (np.array([1, 1, 2]), None),
        (np.array([-1, 4]), None),
        (np.array([4, 300]), None),
        (KEPT.astype(np.float32), None),
        (KEPT[None], 90),
        (np.empty(0, np.int64), None),
    ],
)
def test_kept_ids_are_checked(draft: Path, kept: np.ndarray, declared: object) -> None:
    trim(draft, kept, declared)
    with pytest.raises(CheckpointError, match=r"edgespec\.kept_ids"):
        open_checkpoint(str(draft))


def test_a_trimmed_folder_without_its_ids(draft: Path) -> None:
    edit(draft, edgespec={"vocabulary": 90})
    with pytest.raises(CheckpointError, match=r"trims the vocabulary to 90 of 300"):
        open_checkpoint(str(draft))


def test_a_trimmed_graph_is_standard_onnx(target: Path, draft: Path) -> None:
    import onnx

    trim(draft, KEPT)
    bundle = bundled(target, draft, "cpu-int4")
    path = str(bundle.path("draft/cpu-int4/model.onnx"))
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


def test_precisions_of_a_trimmed_draft_are_its_profiles(target: Path, draft: Path) -> None:
    trim(draft, KEPT)
    manifest = bundled(target, draft, "cpu-int8").manifest
    assert manifest.drafts["cpu-int8"].precisions == precisions("int8")
