"""Recovery trains scales and norms: it must come nearer to the target and keep the integers."""

import numpy as np
import pytest
import torch

from calibration.decoder import load
from calibration.distillation.batches import batch
from calibration.distillation.losses import divergence
from calibration.quantisation.recover import recover
from calibration.quantisation.rounding import floats, plain
from calibration.target import prepare
from export.sources.open import open_checkpoint


@pytest.fixture(scope="module")
def target(tiny_llama_folder):
    return open_checkpoint(str(tiny_llama_folder))


@torch.no_grad()
def distance(decoder, corpus):
    part = batch(list(corpus.samples(held_out=False))[:20], torch.device("cpu"))
    features = decoder.features(part.ids)[part.learn]
    return float(divergence(features @ decoder.output[part.candidates].T, part).mean())


def test_recovery_comes_nearer_and_keeps_the_integers(target, tmp_path):
    decoder = load(target).requires_grad_(False)
    corpus = prepare(target, decoder, tmp_path / "c", None, 3000, 0, torch.device("cpu"))
    names = [n for n, p in decoder.named_parameters() if n.endswith("_proj.weight")]
    blocks = {name: plain(decoder.get_parameter(name), 4) for name in names}
    for name in names:
        decoder.get_parameter(name).copy_(floats(blocks[name]))
    rounded = distance(decoder, corpus)
    settled = recover(decoder, blocks, corpus, 25, 0)
    assert distance(decoder, corpus) < rounded - 0.02
    for name in names:
        assert (settled[name].values == blocks[name].values).all()
        scales = settled[name].scales
        assert (scales > 0).all() and (scales == scales.astype(np.float16)).all()
        assert not np.array_equal(scales, blocks[name].scales)
        assert torch.equal(decoder.get_parameter(name), floats(settled[name]))
    assert set(decoder.state_dict()) == set(load(target).state_dict())
