"""A draft for a target: layers chosen by measurement, a run that survives being killed."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from calibration.corpus import Corpus
from calibration.decoder import load
from calibration.distillation.batches import batch
from calibration.distillation.distill import Distilled, DistillSettings, distill
from calibration.distillation.layers import choose_layers
from calibration.distillation.training import Schedule, Trainer, agreement
from calibration.target import prepare
from cli.main import main
from edgespec.errors import EdgespecError, UsageError
from export.sources.open import open_checkpoint

CPU = torch.device("cpu")
SCHEDULE = Schedule(hours=1, steps=12, batch_tokens=512, rate=2e-3)


@pytest.fixture(scope="module")
def target(tiny_llama_folder):
    return open_checkpoint(str(tiny_llama_folder))


@pytest.fixture(scope="module")
def corpus(target, tmp_path_factory):
    return prepare(target, load(target), tmp_path_factory.mktemp("pair") / "c", None, 4000, 0, CPU)


@pytest.fixture
def settings(corpus, tmp_path):
    return DistillSettings(
        tmp_path / "draft", depth=2, corpus=corpus.folder, tokens=4000, schedule=SCHEDULE
    )


def last(events):
    result = list(events)[-1]
    assert isinstance(result, Distilled)
    return result


def test_the_layer_that_does_nothing_is_left_out_first(target, corpus):
    decoder = load(target)
    with torch.no_grad():
        decoder.model.layers[1].self_attn.o_proj.weight.zero_()
        decoder.model.layers[1].mlp.down_proj.weight.zero_()
    samples = list(corpus.samples(held_out=False))[:4]
    assert choose_layers(decoder, batch(samples, CPU, answers=True), 2) == [0, 2]


def test_a_draft_of_all_layers_agrees_with_its_target(target, corpus):
    samples = list(corpus.samples(held_out=False))[:10]
    greedy = [s for s in samples if (s.ids[s.answer + 1 :] == s.top_ids[s.answer : -1, 0]).all()]
    assert agreement(load(target), greedy) > 0.9  # bfloat16 decides some near ties otherwise


def test_training_lowers_the_loss_and_is_written_as_a_checkpoint(target, settings):
    longer = replace(SCHEDULE, steps=40, rate=3e-3)
    events = list(distill(target, replace(settings, schedule=longer)))
    losses = [news.loss for news in events[1:-1]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    result = last(events)
    draft = open_checkpoint(str(settings.out))
    assert draft.architecture.layers == 2
    assert not settings.out.with_name("draft.work").exists()
    config = json.loads((settings.out / "config.json").read_text())
    assert config["edgespec"]["layers"] == result.layers
    embedding = "model.embed_tokens.weight"
    assert (draft.tensor(embedding) == target.tensor(embedding).astype("float16")).all()


def test_a_killed_run_goes_on_to_the_same_end(target, settings, monkeypatch):
    whole = last(distill(target, settings))
    monkeypatch.setattr("calibration.distillation.training.SAVE_S", 0.0)
    broken = replace(settings, out=settings.out.with_name("broken"))
    for news in distill(target, broken):
        if news.state.step == 7:
            break  # killed
    resumed = [n for n in distill(target, broken) if not isinstance(n, Distilled)]
    assert resumed[0].state.tokens > 0, "began anew"
    again = json.loads((broken.out / "config.json").read_text())["edgespec"]
    assert again["trained_tokens"] >= 0.9 * whole.trained_tokens
    assert again["held_out_agreement"] == pytest.approx(whole.agreement, abs=0.05)


def test_a_killed_run_with_other_settings_is_refused_and_kept(target, settings, monkeypatch):
    monkeypatch.setattr("calibration.distillation.training.SAVE_S", 0.0)
    for news in distill(target, settings):
        if news.state.step == 3:
            break
    work = settings.out.with_name("draft.work")
    saved = (work / "training.pt").read_bytes()
    with pytest.raises(UsageError, match=r"begun with rate 0.002 and now rate is 0.001"):
        list(distill(target, replace(settings, schedule=replace(SCHEDULE, rate=1e-3))))
    assert (work / "training.pt").read_bytes() == saved
    (work / "training.pt").write_bytes(saved[:100])
    with pytest.raises(EdgespecError, match="cannot be read"):
        list(distill(target, settings))


def test_a_trimmed_draft_names_only_the_words_it_keeps(target, settings):
    last(distill(target, replace(settings, vocabulary=80)))
    draft = open_checkpoint(str(settings.out), base=target)
    assert draft.kept_ids is not None and len(draft.kept_ids) == 80


def test_only_layers_are_trained(target, corpus, tmp_path):
    draft = load(target, [0, 2])
    before = {name: p.clone() for name, p in draft.named_parameters()}
    trainer = Trainer(draft, corpus, replace(SCHEDULE, steps=2), tmp_path, 0)
    for _ in trainer.run():
        pass
    changed = {name for name, p in draft.named_parameters() if not torch.equal(p, before[name])}
    assert "model.embed_tokens.weight" not in changed and "lm_head.weight" not in changed
    assert changed == {n for n in before if "embed" not in n and "lm_head" not in n}


@pytest.mark.parametrize(
    ("options", "says", "code"),
    [
        (["--depth", "9"], "--depth 9 is more than the 3 layers", 2),
        (["--layers", "0,7"], "--layers 0,7 must be ascending", 2),
        (["--layers", "x"], "--layers is a list of layers", 2),
        (["--vocabulary", "9999"], "--vocabulary 9999 is more than", 2),
        (["--prompts", "/nowhere/at/all"], "there is no /nowhere/at/all", 2),
        (["--device", "cuda"], "no CUDA device", 2),
        (["--layers", "0,1", "--vocabulary", "9999"], "--vocabulary 9999 is more than", 2),
        (["--layers", "0,1", "--depth", "1"], "pass one of them", 2),
        (["--out", "/proc/draft"], "cannot write", 1),
    ],
)
def test_bad_input_is_one_sentence(tiny_llama_folder, tmp_path, options, says, code):
    command = ["distill", str(tiny_llama_folder), "--out", str(tmp_path / "d"), "--tokens", "100"]
    result = CliRunner().invoke(main, [*command, "--corpus", str(tmp_path / "c"), *options])
    assert result.exit_code == code, result.output
    assert says in result.output and result.output.count("\n") == 1
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("option", ["--rate=-1", "--rate=nan", "--rate=inf", "--hours=nan"])
def test_numbers_that_are_none_are_usage_errors(tiny_llama_folder, tmp_path, option):
    command = ["distill", str(tiny_llama_folder), "--out", str(tmp_path / "d"), option]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_ends_the_run(target, settings):
    wild = replace(settings, schedule=replace(SCHEDULE, rate=1e30, steps=30))
    with pytest.raises(EdgespecError, match="lower --rate"):
        list(distill(target, wild))
    assert not settings.out.exists()


def test_one_prompt_is_not_measured_on_what_is_trained(target, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "the fox"}) + "\n")
    corpus = prepare(target, load(target), tmp_path / "c", tmp_path / "p.jsonl", 6000, 0, CPU)
    trainer = Trainer(load(target, [0]), corpus, SCHEDULE, tmp_path, 0)
    measured = {sample.ids.tobytes() for sample in trainer._held_out()}
    trained = {sample.ids.tobytes() for sample in next(trainer._stream())}
    assert measured and not measured & trained


def test_an_existing_folder_is_refused(target, settings):
    settings.out.mkdir()
    (settings.out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists already"):
        list(distill(target, settings))
    assert (settings.out / "thesis.txt").read_text() == "years of work"


def test_the_corpus_is_the_targets_own(corpus):
    assert Corpus(corpus.folder).tokens() >= 4000
