"""Quantisation that looks at the data must beat rounding that does not, and keep to the format."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from calibration.corpus import Corpus, Sample
from calibration.decoder import load
from calibration.quantisation.gptq import quantise, units
from calibration.quantisation.precision import choose_bits, damages, packed_bytes
from calibration.quantisation.rounding import Rounder, floats, plain
from cli.main import main
from export.sources.open import open_checkpoint


@pytest.fixture
def model(tiny_llama_folder):
    return open_checkpoint(str(tiny_llama_folder))


@pytest.fixture
def decoder(model):
    return load(model).requires_grad_(False)


@torch.no_grad()
def written(decoder, count, tokens=40):
    """Random text with the decoder's own likeliest tokens, few distinct words as in real text."""
    random = np.random.default_rng(5)
    samples = []
    for _ in range(count):
        ids = 40 + random.zipf(1.5, tokens) % 200
        logits = decoder.logits(decoder.features(torch.from_numpy(ids)[None]))[0]
        values, best = logits.log_softmax(-1).topk(24)
        samples.append(
            Sample(
                ids.astype(np.uint32),
                8,
                8,
                best.numpy().astype(np.uint32),
                values.numpy().astype(np.float16),
            )
        )
    return samples


@torch.no_grad()
def drift(decoder, original, samples):
    """Mean squared change of the features on `samples`, over their mean square."""
    ids = torch.from_numpy(np.stack([sample.ids for sample in samples]).astype(np.int64))
    truth = original.features(ids)
    return float((decoder.features(ids) - truth).square().mean() / truth.square().mean())


def correlated(rows, inputs):
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(inputs, inputs, generator=generator) * torch.logspace(0, -2, inputs)
    return torch.randn(rows, inputs, generator=generator) @ mix.T


@pytest.mark.parametrize("bits", [4, 8])
def test_a_matrix_rounded_by_its_inputs_errs_less_than_one_rounded_alone(bits):
    x = correlated(512, 96)
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(4))
    rounded = Rounder(x.T @ x / len(x)).round(weight, bits)
    alone = plain(weight, bits)
    errors = [(x @ (floats(b) - weight).T).square().mean() for b in (rounded, alone)]
    assert errors[0] < 0.6 * errors[1]
    for blocks in (rounded, alone):
        assert blocks.values.dtype == np.int8 and blocks.values.shape == (48, 96)
        assert blocks.values.min() >= -(2 ** (bits - 1)) and blocks.values.max() < 2 ** (bits - 1)
        assert blocks.values.max() > 2 ** (bits - 1) - 4, "the range is used"
        assert blocks.scales.shape == (48, 3) and (blocks.scales > 0).all()
        np.testing.assert_array_equal(blocks.scales.astype(np.float16), blocks.scales)


def test_plain_rounding_is_the_nearest_integer():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    blocks = plain(weight, 8)
    steps = torch.from_numpy(blocks.scales).repeat_interleave(32, dim=1)
    inside = torch.from_numpy(np.abs(blocks.values) < 127)
    assert ((floats(blocks) - weight).abs() <= steps / 2 * 1.001)[inside].all()


def test_inputs_that_never_come_and_weights_of_zero_do_no_harm():
    x = correlated(256, 64)
    x[:, 10:50] = 0
    weight = torch.randn(4, 64)
    weight[2] = 0
    blocks = Rounder(x.T @ x / len(x)).round(weight, 4)
    assert np.isfinite(blocks.scales).all() and (blocks.scales > 0).all()
    assert not floats(blocks)[2].any()


def test_calibration_beats_rounding_on_text_it_has_not_seen(model, decoder):
    samples = written(decoder, 48)
    bits = {name: 4 for unit in units(decoder) for name in unit.names}
    assert len(bits) == 21
    alone, calibrated = (load(model).requires_grad_(False) for _ in range(2))
    for name in bits:
        alone.get_parameter(name).copy_(floats(plain(alone.get_parameter(name), 4)))
    blocks = quantise(calibrated, samples[:40], bits)
    assert set(blocks) == set(bits)
    for name, one in blocks.items():
        assert torch.equal(calibrated.get_parameter(name), floats(one)), name
    held_out = samples[40:]
    assert drift(calibrated, decoder, held_out) < 0.8 * drift(alone, decoder, held_out)


def test_only_what_is_named_is_changed(model, decoder):
    name = "model.layers.1.mlp.down_proj.weight"
    before = {n: p.clone() for n, p in decoder.named_parameters()}
    assert list(quantise(decoder, written(decoder, 4), {name: 8})) == [name]
    changed = [n for n, p in decoder.named_parameters() if not torch.equal(p, before[n])]
    assert changed == [name]


def test_damage_is_what_int4_does_to_a_unit_alone(decoder):
    exact = "model.layers.1.mlp.down_proj.weight"
    whole = torch.randint(-7, 8, (64, 128), generator=torch.Generator().manual_seed(0))
    whole[:, ::32] = 7
    decoder.get_parameter(exact).copy_(whole * 0.0625)
    before = {n: p.clone() for n, p in decoder.named_parameters()}
    measured = damages(decoder, written(decoder, 6))
    for name, parameter in decoder.named_parameters():
        assert torch.equal(parameter, before[name])
    assert len(measured) == 12
    for unit, damage in measured.items():
        assert (abs(damage) < 1e-5) == (unit.names == (exact,)), (unit, damage)


def test_int8_goes_where_it_helps_most_for_its_size(decoder):
    measured = dict.fromkeys(units(decoder), 0.0)
    small, large = (
        next(u for u in measured if (u.layer, u.kind) == wanted)
        for wanted in ((2, "self_attn.o_proj"), (0, "mlp.gate_proj"))
    )
    measured[small], measured[large] = 0.4, 1.0  # large is four times as large
    bits = choose_bits(decoder, measured, 0.05)
    assert {n for n, b in bits.items() if b == 8} == {"model.layers.2.self_attn.o_proj.weight"}
    bits = choose_bits(decoder, measured, 0.25)
    assert {*small.names, *large.names} <= {n for n, b in bits.items() if b == 8}
    total = sum(decoder.get_parameter(n).numel() for n in bits)
    wide = sum(decoder.get_parameter(n).numel() for n, b in bits.items() if b == 8)
    assert wide <= 0.25 * total
    blocks = {n: plain(decoder.get_parameter(n).detach(), b) for n, b in bits.items()}
    assert packed_bytes(blocks) == total // 2 + wide // 2 + total // 16
    assert set(choose_bits(decoder, measured, 0).values()) == {4}
    assert set(choose_bits(decoder, measured, 1).values()) == {8}


def quantise_command(*arguments):
    return CliRunner().invoke(main, ["quantise", *map(str, arguments), "--device", "cpu"])


@pytest.fixture
def corpus(tmp_path, decoder):
    folder = tmp_path / "corpus"
    Corpus(folder).add(written(decoder, 96), 96)
    return folder


def test_the_command_writes_what_export_reads(tiny_llama_folder, tmp_path, corpus, decoder):
    out = tmp_path / "int4"
    result = quantise_command(tiny_llama_folder, "--out", out, "--corpus", corpus)
    assert result.exit_code == 0, result.output
    assert "agreement with the target 1.000 before" in result.output
    packed = open_checkpoint(str(out))
    kinds = [packed.blocks(name) for unit in units(decoder) for name in unit.names]
    assert {one.bits for one in kinds} == {4, 8}
    figures = json.loads((out / "config.json").read_text())["edgespec"]["quantised"]
    assert figures["agreement_before"] == 1.0
    again = load(packed)
    samples = written(decoder, 104)[96:]  # not trained on
    ids = torch.from_numpy(np.stack([s.ids for s in samples]).astype(np.int64))
    truth = np.stack([s.top_ids[:, 0] for s in samples])
    same = (again.logits(again.features(ids)).argmax(-1).numpy() == truth).mean()
    assert abs(same - figures["agreement"]) < 0.1


def test_a_draft_of_a_target_leaves_the_embedding_out(tiny_llama_folder, tmp_path, corpus):
    out = tmp_path / "int8"
    options = ["--corpus", corpus, "--bits", 8, "--target", tiny_llama_folder]
    result = quantise_command(tiny_llama_folder, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert not (out / "tokenizer.json").exists()
    target = open_checkpoint(str(tiny_llama_folder))
    draft = open_checkpoint(str(out), base=target)
    assert draft.blocks("model.layers.0.mlp.up_proj.weight").bits == 8
    np.testing.assert_array_equal(
        draft.tensor("model.embed_tokens.weight"), target.tensor("model.embed_tokens.weight")
    )


def test_without_a_corpus_the_target_writes_one(tiny_llama_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("calibration.quantisation.quantise.WRITTEN_TOKENS", 3000)
    out = tmp_path / "int4"
    options = ["--int8-share", 0, "--tokens", 2000, "--recovery", 2]
    result = quantise_command(tiny_llama_folder, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert list(tmp_path.glob("**/shard-*.npz"))
    assert open_checkpoint(str(out)).blocks("model.layers.0.mlp.up_proj.weight").bits == 4


def test_bad_requests_get_one_sentence(tiny_llama_folder, tmp_path, corpus):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("a")
    result = quantise_command(tiny_llama_folder, "--out", tmp_path / "mine", "--corpus", corpus)
    assert result.exit_code == 2 and "exists already" in result.output
    result = quantise_command(tiny_llama_folder, "--out", tmp_path / "x", "--corpus", tmp_path)
    assert result.exit_code == 2 and "holds no corpus" in result.output
    assert not (tmp_path / "x").exists()
