"""Drafts in llama.cpp; skipped where the bindings are not installed."""

import sys

import numpy as np
import pytest

from edgespec.config import Request
from edgespec.errors import EngineError
from edgespec.manifest import SELF_DRAFT
from edgespec.sampling import Sampling
from engines.backends import open_draft
from engines.base import Row, final_choices
from engines.drafters.base import DraftRequest
from engines.drafters.model import ModelDrafter
from engines.llamacpp_backend import engine as backend
from engines.llamacpp_backend.bindings import open_bindings
from engines.llamacpp_backend.top import top_choices
from engines.machine.profiles import precisions
from export.bundle import ExportSettings, export
from export.gguf_file import write_gguf
from export.sources.open import open_checkpoint
from tests.export.test_graph import FAMILIES, make, truth

TEXT = np.random.default_rng(0).integers(3, 160, 90).tolist()


def needs_bindings():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def loaded(source, folder):
    needs_bindings()
    path = folder / "model.gguf"
    checkpoint = open_checkpoint(str(source))
    write_gguf(path, checkpoint, precisions("fp32"), 512, "draft")
    return backend.LlamaCppEngine(
        path, layers=4, position_bytes=1024, context=512, threads=1, slots=4
    )


@pytest.fixture
def model(tmp_path):
    return make(tmp_path / "model", *FAMILIES["llama, grouped"])


@pytest.fixture
def engine(model, tmp_path):
    return loaded(tmp_path / "model", tmp_path)


def logits(engine, row):
    (choices,) = final_choices(engine, [row])
    return choices.logits


def close(actual, expected):
    """The cache is fp16."""
    return np.abs(actual - expected).max() <= 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    "family",
    [f for f in FAMILIES if f not in ("llama, yarn", "mistral")],
)
def test_parity_with_transformers(tmp_path, family):
    expected = truth(make(tmp_path / "model", *FAMILIES[family]), TEXT)
    engine = loaded(tmp_path / "model", tmp_path)
    slot = engine.open()
    assert close(logits(engine, Row(slot, 0, TEXT[:40], 40)), expected[:40])
    assert close(logits(engine, Row(slot, 40, TEXT[40:41])), expected[40:41])
    assert close(logits(engine, Row(slot, 41, TEXT[41:], 49)), expected[41:])


def test_rows_of_several_slots_roll_back_and_share_prefixes(model, engine):
    expected = truth(model, TEXT)
    first, second = engine.open(), engine.open()
    engine.copy(first, second, 0, 0)
    wrong = [5] * 10
    rows = [Row(first, 0, TEXT[:30] + wrong, 0), Row(second, 0, TEXT[:3], 3)]
    nothing, some = final_choices(engine, rows)
    assert nothing is None and close(some.logits, expected[:3])
    assert close(logits(engine, Row(first, 30, TEXT[30:50], 20)), expected[30:50])
    engine.copy(first, second, 3, 45)
    assert engine.cached(second) == 45
    both = [Row(second, 45, TEXT[45:60], 15), Row(first, 50, TEXT[50:52], 2)]
    after, own = final_choices(engine, both)
    assert close(after.logits, expected[45:60]) and close(own.logits, expected[50:52])
    engine.truncate(first, 20)
    engine.close(second)
    assert close(logits(engine, Row(first, 20, TEXT[20:30], 10)), expected[20:30])
    with pytest.raises(ValueError, match="cannot be copied"):
        engine.copy(first, engine.open(), 0, 31)


def test_a_full_cache_grows_with_what_it_holds(model, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "FIRST_CELLS", 256)
    engine, expected = loaded(tmp_path / "model", tmp_path), truth(model, TEXT)
    slots = [engine.open() for _ in range(4)]
    for slot in slots:
        final_choices(engine, [Row(slot, 0, TEXT[:80], 0)])
    assert engine._cells > 256
    for slot in slots:
        assert close(logits(engine, Row(slot, 80, TEXT[80:85], 5)), expected[80:85])


def test_a_full_cache_that_may_not_grow(model, tmp_path):
    engine = loaded(tmp_path / "model", tmp_path)
    engine.limit(1024 * 1024)
    assert engine.slots == 256
    slots = [engine.open() for _ in range(13)]
    for slot in slots[:11]:
        final_choices(engine, [Row(slot, 0, TEXT, 0)])
    with pytest.raises(EngineError, match="all 1024 positions"):
        final_choices(engine, [Row(slots[12], 0, TEXT, 0)])
    engine.close(slots[0])
    final_choices(engine, [Row(slots[12], 0, TEXT[:50], 0)])


def test_slots_are_bounded(engine):
    for _ in range(4):
        engine.open()
    with pytest.raises(EngineError, match="all 4 slots"):
        engine.open()


@pytest.fixture(scope="module")
def bundle(tiny_llama_folder, tmp_path_factory):
    drafts = (("llamacpp-int8", SELF_DRAFT), ("llamacpp-int4", SELF_DRAFT))
    out = tmp_path_factory.mktemp("llamacpp") / "bundle"
    return export(ExportSettings(str(tiny_llama_folder), out, drafts=drafts))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, seed=3)])
def test_a_device_drafts_with_it(bundle, house, sampling):
    from engines.onnxruntime_backend.engine import OrtSettings, load_target

    needs_bindings()
    home = house(load_target(bundle, OrtSettings()))
    drafter = ModelDrafter(open_draft(bundle, "llamacpp-int8", 1, 4), "llamacpp-int8")
    loop = home.device(drafter, mode="edge")
    request = Request((5, 6, 7), 40, sampling)
    answer = loop.start(request)
    list(loop.write(answer))
    assert answer.stats.token_ids == home.alone(request)
    assert answer.stats.accepted > 10


def test_drafts_are_the_same_in_company_and_alone(bundle):
    needs_bindings()
    requests = [DraftRequest(n, TEXT[n : n + 20 + n], Sampling()) for n in range(3)]
    alone = [
        ModelDrafter(open_draft(bundle, "llamacpp-int4", 1, 4), "").guess([r])[0].token
        for r in requests
    ]
    together = ModelDrafter(open_draft(bundle, "llamacpp-int4", 1, 4), "").guess(requests)
    assert [guess.token for guess in together] == alone


def test_a_broken_file(bundle, tmp_path):
    needs_bindings()
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError, match=r"cannot load .*model\.gguf; export the bundle again"):
        backend.LlamaCppEngine(
            tmp_path / "model.gguf", layers=1, position_bytes=1, context=8, threads=1, slots=1
        )


def test_without_the_bindings_the_extra_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    open_bindings.cache_clear()
    with pytest.raises(EngineError, match=r"pip install 'edgespec\[llamacpp\]'"):
        open_draft(bundle, "llamacpp-int4", 1, 1)


@pytest.mark.parametrize("vocabulary", [20, 160, 49152, 49153])
def test_the_top_is_that_of_a_sort(vocabulary):
    rows = np.random.default_rng(0).standard_normal((3, vocabulary)).astype(np.float32)
    rows[1] = np.round(rows[1])  # ties
    choices = top_choices(rows)
    expected = -np.sort(-rows, axis=1)[:, :64]
    assert np.array_equal(choices.top_logits, expected)
    assert np.array_equal(np.take_along_axis(rows, choices.top_ids, 1), expected)
    assert choices.argmax.tolist() == choices.top_ids[:, 0].tolist()
    assert choices.finite
    rows[2, vocabulary // 2] = np.nan
    assert not top_choices(rows).finite
    rows[2] = np.nan
    assert not top_choices(rows).finite
