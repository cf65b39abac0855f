import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open

from calibration.corpus import Corpus, Sample
from calibration.decoder import load
from calibration.exit_heads.evidence import answer, divide, of_exits, originals
from calibration.exit_heads.exits import HEADS, candidates, untrained, write_heads
from calibration.exit_heads.training import ExitSettings, ExitTrainer
from edgespec.errors import EdgespecError, UsageError
from edgespec.manifest import Calibration
from export.sources.open import open_checkpoint

SETTINGS = ExitSettings(layers=(1, 2), tokens=2000, rank=16, window=512, positions=128, laps=3)


def silent(amount, note="", /):
    pass


@pytest.fixture
def decoder(tiny_llama_folder):
    return load(open_checkpoint(str(tiny_llama_folder))).eval()


@torch.no_grad()
def written(decoder, count, length=48, learn=8, seed=0):
    """Samples with the decoder's own arg-max on random text: what a head could learn."""
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        ids = random.integers(2, 40, length)
        logits = decoder.logits(decoder.features(torch.from_numpy(ids[None])))[0]
        values, best = logits.log_softmax(-1).topk(24)
        samples.append(
            Sample(
                ids.astype(np.uint32),
                learn,
                learn,
                best.numpy().astype(np.uint32),
                values.numpy().astype(np.float16),
            )
        )
    return samples


@pytest.mark.parametrize(
    ("layers", "borders", "expected"),
    [
        (30, [20, 25], [10, 12, 14, 16, 18, 20, 22, 24, 25, 26, 28]),
        (4, [], [2, 3]),
        (3, [1], [1, 2]),
        (2, [], [1]),
        (80, [40], [27, 32, 37, 40, 42, 47, 52, 57, 62, 67, 72, 77]),
    ],
)
def test_candidates_are_the_borders_and_a_grid_over_the_later_two_thirds(layers, borders, expected):
    assert candidates(layers, borders) == expected


def test_a_target_of_one_layer_has_nothing_to_leave_early_from():
    with pytest.raises(UsageError, match="one layer"):
        candidates(1, [])


def test_training_begins_at_the_untrained_head(decoder):
    heads = untrained(decoder, [1], 16, 0)
    hidden = torch.randn(5, decoder.architecture.hidden)
    assert torch.equal(heads["1"](hidden), hidden)


def test_training_raises_agreement_on_text_that_was_held_out(decoder, tmp_path):
    samples, held_out = written(decoder, 60), written(decoder, 12, seed=1)
    trainer = ExitTrainer(decoder, SETTINGS, tmp_path)
    before = trainer.agreement(held_out)
    trainer.run(trainer.windows(samples), held_out, silent)
    after = trainer.agreement(held_out)
    assert all(after[layer] > before[layer] + 0.01 for layer in (1, 2))
    assert not any(p.requires_grad for p in decoder.parameters())


class KilledError(Exception):
    pass


def test_a_killed_run_ends_where_it_would_have(decoder, tmp_path, monkeypatch):
    monkeypatch.setattr("calibration.exit_heads.training.SAVE_S", 0.0)
    samples = written(decoder, 40)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = ExitTrainer(decoder, SETTINGS, tmp_path / "whole")
    windows = whole.windows(samples)
    whole.run(windows, [], silent)

    def killed(amount, note="", /):
        if amount:
            raise KilledError

    first = ExitTrainer(decoder, SETTINGS, tmp_path / "cut")
    with pytest.raises(KilledError):
        first.run(windows, [], killed)
    second = ExitTrainer(decoder, SETTINGS, tmp_path / "cut")
    assert second.resume()
    assert second.done == 1 < len(windows)
    second.run(windows, [], silent)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(second.heads.parameters(), whole.heads.parameters(), strict=True)
    )


def test_a_damaged_checkpoint_is_one_sentence(decoder, tmp_path):
    (tmp_path / "exits.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(EdgespecError, match=r"exits\.pt cannot be read .*remove it"):
        ExitTrainer(decoder, SETTINGS, tmp_path).resume()


def test_windows_hold_every_sample_once(decoder, tmp_path):
    samples = written(decoder, 30)
    windows = ExitTrainer(decoder, SETTINGS, tmp_path).windows(samples)
    seen = [id(sample) for groups in windows for group in groups for sample in group]
    assert sorted(seen) == sorted(map(id, samples))
    assert len(windows) > 1


def test_untrained_evidence_is_the_final_norm_and_head_of_that_layer(decoder):
    samples = written(decoder, 3)
    evidence, plain = of_exits(decoder, untrained(decoder, [1, 2], 8, 0), samples, silent)
    with torch.no_grad():
        ids = torch.from_numpy(samples[0].ids[None].astype(np.int64))
        _, states = decoder.hidden(ids, keep=[2])
        named = decoder.logits(decoder.model.norm(states[2]))[0, 8:47].argmax(-1)
    assert evidence[2].answers("tokens")[0].tolist() == named.tolist()
    assert evidence[2].answers("target")[0].tolist() == answer(samples[0]).tolist()
    assert plain[2] == pytest.approx(evidence[2].right.mean(), abs=0.05)


def test_the_original_agrees_with_what_it_wrote(decoder):
    samples = written(decoder, 3)
    assert originals(decoder, samples, silent).tolist() == [
        token for sample in samples for token in answer(sample)
    ]


def test_the_file_holds_the_layers_with_figures_in_float16(decoder, tmp_path):
    figures = Calibration(agreement=0.5, slope=1.5, offset=-0.25, error=0.01, tokens=100)
    heads = untrained(decoder, [1, 2], 8, 0)
    write_heads(tmp_path / HEADS, heads, decoder, "llama", {2: figures})
    with safe_open(tmp_path / HEADS, "np") as file:
        tensors = {name: file.get_tensor(name) for name in iter(file.keys())}
        about = json.loads(file.metadata()["edgespec"])
    half = np.dtype(np.float16)
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        "exit.2.norm.weight": ((64,), half),
        "exit.2.down.weight": ((8, 64), half),
        "exit.2.up.weight": ((64, 8), half),
    }
    assert about == {
        "target": "llama",
        "hidden": 64,
        "layers": 3,
        "calibration": {"2": msgspec.to_builtins(figures)},
    }
    assert [path.name for path in tmp_path.iterdir()] == [HEADS]


def test_scarce_held_out_text_is_taken_from_the_training_text(decoder, tmp_path):
    corpus = Corpus(tmp_path)
    corpus.add(written(decoder, 20), 20)
    training, held_out = divide(corpus, 10_000, 1_000, 512)
    assert len(held_out) >= 2
    assert len(training) + len(held_out) == 20
    assert not {s.ids.tobytes() for s in training} & {s.ids.tobytes() for s in held_out}


def test_samples_end_at_the_context_and_those_without_an_answer_are_left_out(decoder, tmp_path):
    corpus = Corpus(tmp_path)
    late = [replace(sample, answer=40) for sample in written(decoder, 2, seed=3)]
    corpus.add(written(decoder, 20) + late, 22)
    training, held_out = divide(corpus, 10_000, 1_000, 30)
    assert len(training) + len(held_out) == 20
    assert {len(sample.ids) for sample in training + held_out} == {30}


def test_too_little_text_is_one_sentence(decoder, tmp_path):
    corpus = Corpus(tmp_path)
    corpus.add(written(decoder, 1), 1)
    with pytest.raises(UsageError, match=r"too few answers .* larger --tokens"):
        divide(corpus, 1_000, 1_000, 512)
