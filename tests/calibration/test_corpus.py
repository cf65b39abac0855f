"""The corpus: what the target writes, scored as the target scores it, and whole on disk."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from calibration.corpus import (
    TOP_TOKENS,
    Conversation,
    Corpus,
    CorpusSettings,
    Sample,
    Writer,
    _loops,
    extend,
)
from calibration.decoder import AnswerCache, autocast, load
from calibration.distillation.batches import batch, batches, most_used
from calibration.prompts import Prompt, Prompts, default_prompts, read_prompts
from calibration.target import identity, prepare
from edgespec.errors import EdgespecError, UsageError
from export.sources.open import open_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def target(tiny_llama_folder):
    return open_checkpoint(str(tiny_llama_folder))


@pytest.fixture(scope="module")
def decoder(target):
    return load(target)


def write(target, decoder, folder, tokens=600, **settings):
    settings = {"rows": 4, "longest": 48, "request": 12, **settings}
    corpus = Corpus(folder)
    prompts = Prompts((Prompt("the quick", open=False), Prompt("a fox", open=True)))
    writer = Writer(decoder, Conversation(target.tokenizer), prompts, CorpusSettings(**settings))
    for _ in extend(corpus, writer, tokens):
        pass
    return corpus


def test_one_token_at_a_time_is_the_same_as_all_at_once(decoder):
    ids = torch.randint(0, 300, (3, 20))
    with torch.no_grad():
        whole = decoder.features(ids)
        cache = AnswerCache(decoder.architecture, 3, 32, CPU)
        parts = []
        for i in range(20):
            parts.append(decoder.features(ids[:, i : i + 1], cache))
            cache.lengths += 1
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


def test_rows_of_unlike_lengths_do_not_disturb_each_other(decoder):
    ids = torch.randint(0, 300, (1, 12))
    with torch.no_grad():
        alone = decoder.features(ids)[:, -1]
        cache = AnswerCache(decoder.architecture, 2, 32, CPU)
        for i in range(12):
            if i == 5:
                cache.lengths[0] = 0  # row 0 begins anew
            both = torch.stack([ids[0, i - 5 : i - 4] if i >= 5 else ids[0, :1], ids[0, i : i + 1]])
            last = decoder.features(both, cache)
            cache.lengths += 1
    torch.testing.assert_close(last[1], alone, atol=1e-4, rtol=1e-4)


def test_samples_carry_the_targets_own_probabilities(target, decoder, tmp_path):
    corpus = write(target, decoder, tmp_path / "c", sampled=0.0)
    samples = list(corpus.samples(held_out=False)) + list(corpus.samples(held_out=True))
    assert corpus.tokens() == sum(len(s.ids) - 1 - s.learn for s in samples) >= 600
    with torch.no_grad(), autocast(CPU):
        for s in samples[:5]:
            ids = torch.from_numpy(s.ids.astype(np.int64))[None]
            logprobs = decoder.logits(decoder.features(ids))[0].float().log_softmax(-1)
            stated = torch.from_numpy(s.top_logprobs.astype(np.float32))
            found = logprobs.gather(1, torch.from_numpy(s.top_ids.astype(np.int64)))
            torch.testing.assert_close(found[:-1], stated[:-1], atol=0.15, rtol=0.1)
            assert s.top_ids.shape == (len(s.ids), TOP_TOKENS)
            answer = s.ids[s.answer + 1 :]
            assert (answer == s.top_ids[s.answer : -1, 0]).all(), "a greedy answer is the arg-max"


def test_a_corpus_goes_on_where_it_was(target, decoder, tmp_path):
    corpus = write(target, decoder, tmp_path / "c", tokens=300)
    first, following = corpus.shards(), corpus.next()
    more = write(target, decoder, tmp_path / "c", tokens=900)
    assert more.shards()[: len(first)] == first and len(more.shards()) > len(first)
    assert more.next() > following and more.tokens() >= 900


def test_a_shard_is_whole_or_not_there(target, decoder, tmp_path):
    corpus = write(target, decoder, tmp_path / "c")
    (tmp_path / "c" / "shard-00099.77.partial").write_bytes(b"half")
    assert all(path.suffix == ".npz" for path in corpus.shards())


def test_training_and_held_out_requests_are_disjoint(tmp_path):
    corpus = Corpus(tmp_path)
    samples = [
        Sample(
            np.array([7, i, 9, 9], np.uint32), 1, 1,
            np.zeros((4, 2), np.uint32), np.zeros((4, 2), np.float16),
        )
        for i in list(range(400)) * 2
    ]  # fmt: skip
    corpus.add(samples, 800)
    train = {int(s.ids[1]) for s in corpus.samples(held_out=False)}
    held = {int(s.ids[1]) for s in corpus.samples(held_out=True)}
    assert held and not train & held and len(train | held) == 400


@pytest.mark.parametrize(
    ("ids", "loops"),
    [([5] * 48, True), ([1, 2, 3] * 20, True), (list(range(48)), False), ([5] * 20, False)],
)
def test_loops_are_found(ids, loops):
    assert _loops(ids) is loops


def test_batches_hold_every_sample_once_and_pad_little():
    random = np.random.default_rng(0)
    samples = [
        Sample(
            np.zeros(n, np.uint32), 0, 0, np.zeros((n, 1), np.uint32), np.zeros((n, 1), np.float16)
        )
        for n in random.integers(10, 100, 200)
    ]
    groups = list(batches(samples, 500, random))
    assert sorted(id(s) for g in groups for s in g) == sorted(id(s) for s in samples)
    padded = [max(len(s.ids) for s in g) * len(g) for g in groups]
    assert max(padded) <= 500
    assert sum(padded) < 1.5 * sum(len(s.ids) for s in samples)


def test_a_batch_points_each_position_to_its_candidates():
    top = np.array([[4, 9], [9, 2], [4, 2], [1, 1]], np.uint32)
    sample = Sample(np.array([3, 4, 9, 2], np.uint32), 1, 2, top, np.log(np.full((4, 2), 0.5)))
    part = batch([sample], CPU)
    assert part.learn[0].nonzero()[:, 0].tolist() == [1, 2] and part.ids.shape == (1, 16)
    assert part.candidates[part.targets].tolist() == [[9, 2], [4, 2]]
    assert batch([sample], CPU, answers=True).candidates.tolist() == [2, 4]


def test_the_words_used_most_are_kept():
    top = np.array([[5, 7], [5, 3], [0, 0]], np.uint32)
    logprobs = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [1, 1]]))
    sample = Sample(np.zeros(3, np.uint32), 0, 0, top, logprobs.astype(np.float16))
    assert most_used([sample], 10, 2).tolist() == [3, 5]


def test_the_default_prompts_are_a_function_of_seed_and_number():
    prompts = default_prompts()
    drawn = [prompts.at(i, 1) for i in range(300)]
    assert drawn == [prompts.at(i, 1) for i in range(300)]
    assert drawn != [prompts.at(i, 2) for i in range(300)]
    kinds = {"chat", "code", "arithmetic", "summarising", "rewriting", "robot", "topics"}
    assert {p.category for p in drawn} == kinds


def test_prompts_are_read_from_lines_and_text(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "hi", "category": "chat"}) + "\n\n")
    (tmp_path / "b.md").write_text("short\n\n" + "A paragraph that is long enough. " * 6 + "\n")
    prompts = read_prompts(tmp_path)
    assert {(p.open, p.category) for p in prompts.fixed} == {(False, "chat"), (True, "text")}
    assert {prompts.at(i, 0) for i in range(2)} == set(prompts.fixed), "each once a lap"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": 3}\n', "line 2"),
        ("a.jsonl", "nonsense\n", "line 1"),
        ("a.jsonl", '["prompt"]\n', "line 1"),
        ("a.jsonl", "\n", "no prompts"),
        ("a.txt", "", "no prompts"),
        ("a.csv", "x", "no prompts"),
    ],
)
def test_prompts_in_the_wrong_format_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=says):
        read_prompts(tmp_path)


def test_a_corpus_of_other_settings_is_refused_and_kept(target, decoder, tmp_path):
    corpus = prepare(target, decoder, tmp_path / "c", None, 200, 0, CPU)
    shards = [path.read_bytes() for path in corpus.shards()]
    with pytest.raises(UsageError, match="begun with seed 0 and now seed is 1"):
        prepare(target, decoder, tmp_path / "c", None, 200, 1, CPU)
    assert [path.read_bytes() for path in corpus.shards()] == shards


def test_log_probabilities_never_exceed_certainty(target, decoder, tmp_path):
    corpus = write(target, decoder, tmp_path / "c", tokens=200)
    for s in corpus.samples(held_out=False):
        assert (s.top_logprobs <= 0).all() and math.isfinite(float(s.top_logprobs.min()))


def test_a_damaged_shard_is_named_and_a_new_one_overwrites_none(target, decoder, tmp_path):
    corpus = write(target, decoder, tmp_path / "c", tokens=200)
    write(target, decoder, tmp_path / "c", tokens=400)
    write(target, decoder, tmp_path / "c", tokens=600)
    first, *_, last = corpus.shards()
    kept = last.read_bytes()
    first.write_bytes(b"PK damaged")
    with pytest.raises(EdgespecError, match=f"{first.name} is damaged"):
        corpus.tokens()
    first.unlink()
    write(target, decoder, tmp_path / "c", tokens=800)
    assert last.read_bytes() == kept


def test_two_targets_of_one_shape_have_two_identities(target, tiny_llama_folder, tmp_path):
    shutil.copytree(tiny_llama_folder, tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"] = (
        weights["model.layers.1.self_attn.q_proj.weight"] * 1.01
    )
    save_file(weights, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    assert identity(open_checkpoint(str(tmp_path / "tuned"))) != identity(target)


def test_a_template_that_fills_the_sequence_is_refused(target, decoder, tmp_path):
    with pytest.raises(UsageError, match="chat template alone fills"):
        write(target, decoder, tmp_path / "c", longest=8)
