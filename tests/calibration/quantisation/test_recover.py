"""Training after rounding: it must come nearer to the target, in the same format, and resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calibration.decoder import load
from calibration.distillation.batches import batch
from calibration.distillation.losses import divergence
from calibration.distillation.training import Schedule, Trainer
from calibration.quantisation.packed import read_blocks, write_blocks
from calibration.quantisation.quantise import LEARNING_RATE, QuantiseSettings, run
from calibration.quantisation.recover import Recovery
from calibration.quantisation.rounding import floats, plain
from calibration.target import prepare
from edgespec.errors import CheckpointError, UsageError
from export.sources.open import open_checkpoint

NAME = "model.layers.0.mlp.up_proj.weight"
_RUN = Trainer.run


@pytest.fixture(scope="module")
def target(tiny_llama_folder):
    return open_checkpoint(str(tiny_llama_folder))


@torch.no_grad()
def distance(decoder, corpus):
    part = batch(list(corpus.samples(held_out=False))[:20], torch.device("cpu"))
    features = decoder.features(part.ids)[part.learn]
    return float(divergence(features @ decoder.output[part.candidates].T, part).mean())


@pytest.fixture(scope="module")
def corpus(target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recovery") / "c"
    return prepare(target, load(target), folder, None, 3000, 0, torch.device("cpu"))


@pytest.fixture
def blocks(target):
    decoder = load(target)
    names = [n for n, _ in decoder.named_parameters() if n.endswith("_proj.weight")]
    bits = {name: 8 if "down" in name else 4 for name in names}
    return {name: plain(decoder.get_parameter(name).detach(), bits[name]) for name in names}


def recovery(target, blocks, corpus, folder, steps):
    decoder = load(target).requires_grad_(False)
    schedule = Schedule(hours=1, steps=steps, batch_tokens=512, rate=LEARNING_RATE)
    return decoder, Recovery(decoder, blocks, corpus, schedule, folder, 0)


@torch.no_grad()
def rounded(target, blocks):
    decoder = load(target).requires_grad_(False)
    for name, one in blocks.items():
        decoder.get_parameter(name).copy_(floats(one))
    return decoder


def test_training_begins_with_the_rounded_weights(target, blocks, corpus, tmp_path):
    decoder, started = recovery(target, blocks, corpus, tmp_path, 1)
    for name, one in blocks.items():
        weight = decoder.get_submodule(name.removesuffix(".weight")).weight
        assert torch.equal(weight, floats(one)), name
    settled = started.settle()
    for name, one in blocks.items():
        assert (settled[name].values == one.values).all() and settled[name].bits == one.bits
        assert (settled[name].scales == one.scales).all()


def test_recovery_comes_nearer_and_is_what_is_stored(target, blocks, corpus, tmp_path):
    decoder, trained = recovery(target, blocks, corpus, tmp_path, 25)
    for _ in trained.run():
        pass
    settled = trained.settle()
    assert distance(decoder, corpus) < distance(rounded(target, blocks), corpus) - 0.02
    for name, one in settled.items():
        assert (one.values == blocks[name].values).all() and one.bits == blocks[name].bits
        assert (one.scales > 0).all() and (one.scales == one.scales.astype(np.float16)).all()
        assert not np.array_equal(one.scales, blocks[name].scales)
        assert torch.equal(decoder.get_parameter(name), floats(one))
    assert set(decoder.state_dict()) == set(load(target).state_dict())


def test_a_killed_quantisation_goes_on(tiny_llama_folder, target, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("calibration.distillation.training.SAVE_S", 0.0)
    settings = QuantiseSettings(tmp_path / "d", corpus=corpus.folder, recovery=8, tokens=2000)
    killed = kill_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(target, target, settings)
    assert killed == [0, 1, 2, 3, 4, 5] and not settings.out.exists()
    monkeypatch.setattr("calibration.quantisation.quantise._rounded", None)
    with pytest.raises(UsageError, match="begun with seed 0 and now seed is 1"):
        run(target, target, replace(settings, seed=1))
    resumed = kill_after(100, monkeypatch)
    run(target, target, settings)
    assert resumed[0] >= 4 and resumed[-1] == 8
    assert open_checkpoint(str(settings.out), base=target).blocks(NAME).bits in (4, 8)
    assert not settings.out.with_name("d.work").exists()


def kill_after(steps, monkeypatch):
    """Interrupts the training after so many steps; returns the numbers of the steps seen."""
    seen = []

    def some(trainer):
        for step in _RUN(trainer):
            seen.append(step.state.step)
            yield step
            if step.state.step == steps:
                raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", some)
    return seen


def test_damaged_rounded_matrices_are_named(tmp_path, blocks):
    path = tmp_path / "rounded.safetensors"
    assert read_blocks(path) is None
    write_blocks(path, blocks)
    again = read_blocks(path)
    assert all((again[n].values == blocks[n].values).all() for n in blocks)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="remove it to round again"):
        read_blocks(path)
