"""The tree of what is drafted: grown, forked, cut by verdicts, and told to the cloud."""

import random

import pytest

from cloud_runtime.paths import CandidatePaths
from edge_runtime.tree import Tree
from edgespec.confidence import AcceptanceEstimate
from edgespec.policies import DraftPolicy
from edgespec.protocol import Draft
from engines.drafters.base import Guess

PROMPT = (10, 11, 12)


class Believed(AcceptanceEstimate):
    """Takes a draft at its word."""

    def learn(self, confidence, *, right):
        pass

    def probability(self, confidence):
        return confidence


def approx(*values):
    return [pytest.approx(value) for value in values]


def grown(*guesses):
    """A tree behind three committed ids, its main path drafted as given."""
    tree = Tree(list(PROMPT), Believed())
    for guess in guesses:
        tree.grow(tree.main, guess)
    return tree


def commit(tree, *tokens):
    tree._committed += tokens
    return tree.commit()


def packets(tree):
    return [tree.packet(1, path) for path in tree.unsent()]


TWO = (Guess(20, 0.9, ((30, 0.08),)), Guess(21, 0.5, ((31, 0.4),)))


def test_a_path_grows_by_guesses():
    tree = grown(*TWO)
    assert tree.tokens(tree.main) == [10, 11, 12, 20, 21]
    assert tree.main.chance == pytest.approx(0.45)
    assert tree.main.runners_up == [[(30, *approx(0.08))], [(31, *approx(0.4))]]
    tree.grow(tree.main, None)
    assert tree.main.stuck and tree.main.ahead == [20, 21]


def test_the_tree_corrects_confidences_and_sends_the_raw_ones():
    estimate = AcceptanceEstimate()
    tree = Tree(list(PROMPT), estimate)
    for _ in range(30):
        tree.grow(tree.main, Guess(20, 0.9, ((30, 0.05),)))
        commit(tree, 99)
    tree.grow(tree.main, Guess(20, 0.9, ((30, 0.05),)))
    assert tree.main.confidences[0] < 0.3, "it was wrong all the time"
    (((other, confidence),),) = tree.main.runners_up
    assert other == 30 and confidence == pytest.approx((1 - tree.main.confidences[0]) / 2)
    assert packets(tree)[0].confidences == bytes([round(255 * 0.9)])
    commit(tree, 20)
    assert estimate.acceptance > 0


def test_a_fork_names_each_runner_up_once():
    tree = grown(TWO[0], Guess(21, 0.5, ((31, 0.4), (32, 0.05))))
    branch = tree.fork(tree.main, 1)
    assert tree.tokens(branch) == [10, 11, 12, 20, 31]
    assert (branch.parent, branch.base) == (tree.main.round, 4)
    assert branch.chance == pytest.approx(0.9 * 0.4)
    assert tree.main.runners_up == [[(30, *approx(0.08))], [(32, *approx(0.05))]]
    assert branch.runners_up == [[], []], "what it shares is the main path's to fork"
    assert tree.fork(tree.main, 1).ahead == [20, 32]
    assert tree.main.runners_up[1] == []


@pytest.mark.parametrize(
    ("committed", "hit", "main"),
    [
        ([20], "full", [21]),
        ([20, 31], "branch", [41]),
        ([30], "miss", []),
        ([20, 21], "miss", []),  # right, but nothing is ready
        ([20, 21, 99], "miss", []),
        ([20, 32], "miss", []),
        ([99], "miss", []),
        ([20, 31, 41], "miss", []),
    ],
)
def test_a_verdict_cuts_the_tree(committed, hit, main):
    tree = grown(*TWO)
    branch = tree.fork(tree.main, 1)
    tree.grow(branch, Guess(41, 0.7))
    assert commit(tree, *committed) == hit
    assert tree.main.ahead == main
    assert tree.main in tree.paths
    assert tree.tokens(tree.main)[:3] == list(PROMPT)
    if hit == "branch":
        assert (tree.paths, tree.main.via) == ([branch], "full")


def test_the_likeliest_of_several_branches_goes_on():
    tree = grown(Guess(20, 0.5, ((30, 0.3),)))
    first = tree.fork(tree.main, 0)
    tree.grow(first, Guess(31, 0.2))
    second = tree.open(first, 1, 32, 0.6, "hint")
    assert commit(tree, 30) == "hint"
    assert tree.main is second
    assert set(map(id, tree.paths)) == {id(first), id(second)}


def test_hints_raise_and_lower_and_open_paths():
    tree = grown(*TWO)
    assert tree.hinted(99, 3, [20], 0.6) is None, "of no round that is here"
    assert tree.hinted(tree.main.round, 2, [20], 0.6) is None, "stale"
    assert tree.hinted(tree.main.round, 3, [20, 21], 0.6) is None, "as drafted"
    path = tree.hinted(tree.main.round, 3, [20, 33, 34], 0.6)
    assert (path.ahead, path.via, path.confidences) == ([20, 33], "hint", [0.9, 0.6])
    assert tree.main.confidences == [0.9, 0.4] and tree.main.runners_up[1] == []
    assert tree.hinted(tree.main.round, 3, [20, 33], 0.8) is None, "it is there already"
    assert path.confidences[1] == 0.8
    assert tree.hinted(tree.main.round, 3, [20, 21, 22], 0.6).ahead == [20, 21, 22]


def test_there_are_never_too_many_paths_and_the_main_one_stays():
    tree = grown(Guess(20, 0.01, ((30, 0.01),)))
    for token in range(3 * DraftPolicy().kept_paths):
        tree.open(tree.main, 0, 40 + token, 0.5 + token / 100, "hint")
    assert len(tree.paths) == DraftPolicy().kept_paths
    assert tree.main in tree.paths
    least = min(path.ahead[0] for path in tree.paths if path is not tree.main)
    assert least == 41 + 2 * DraftPolicy().kept_paths, "the least likely went"


def test_packets_tell_parents_before_branches_and_nothing_twice():
    tree = grown(*TWO)
    branch = tree.fork(tree.main, 1)
    second = tree.open(branch, 2, 51, 0.2, "branch")
    assert packets(tree) == [
        Draft(1, 1, 0, 3, [20, 21], bytes([230, 128])),
        Draft(1, 2, 1, 4, [31], bytes([102])),
        Draft(1, 3, 2, 5, [51], bytes([51])),
    ]
    assert packets(tree) == []
    tree.grow(tree.main, Guess(22, 1.0))
    tree.grow(second, Guess(52, 0.0))
    assert packets(tree) == [Draft(1, 1, 1, 5, [22], b"\xff"), Draft(1, 3, 3, 6, [52], b"\x00")]


def test_ids_that_were_committed_before_they_were_sent_are_told_again():
    """The cloud has not heard of them along this round, which must have no gap."""
    tree = grown(TWO[0])
    packets(tree)
    for token in (21, 22, 23):
        tree.grow(tree.main, Guess(token, 0.5))
    assert commit(tree, 20, 21) == "full"
    assert packets(tree) == [Draft(1, 1, 1, 4, [21, 22, 23], bytes([255, 128, 128]))]


def test_a_branch_that_was_never_sent_becomes_a_root():
    tree = grown(*TWO)
    branch = tree.fork(tree.main, 1)
    tree.grow(branch, Guess(41, 0.6))
    assert commit(tree, 20) == "full"
    assert packets(tree) == [
        Draft(1, 1, 0, 4, [21], bytes([128])),
        Draft(1, 2, 0, 4, [31, 41], bytes([102, 153])),
    ]
    # One that was sent keeps its parent.
    tree = grown(*TWO)
    branch = tree.fork(tree.main, 1)
    packets(tree)
    tree.grow(branch, Guess(41, 0.6))
    commit(tree, 20)
    assert packets(tree) == [Draft(1, 2, 2, 5, [41], bytes([153]))]


def test_a_miss_begins_a_round_of_its_own():
    tree = grown(*TWO)
    packets(tree)
    assert commit(tree, 99) == "miss"
    tree.grow(tree.main, Guess(40, 0.5))
    assert packets(tree) == [Draft(1, 2, 0, 4, [40], bytes([128]))]
    tree.restart()
    assert packets(tree) == []
    assert tree.packet(1, tree.main) == Draft(1, 3, 0, 4, [], b"")


class Walk:
    """A random tree of a device, the paths that a cloud keeps of it, and a random target text."""

    def __init__(self, seed, *, loss):
        self.chance = random.Random(seed)
        self.loss = loss
        self.tree = Tree(list(PROMPT), Believed())
        self.committed = list(PROMPT)
        self.cloud = CandidatePaths(self.committed)
        self.had = set()
        """Every text that the device held, and all its beginnings."""
        self.under_way = []
        self.verdicts = []

    def remember(self):
        for path in self.tree.paths:
            text = tuple(self.tree.tokens(path))
            self.had |= {text[:end] for end in range(len(text) + 1)}

    def step(self):
        chance, tree = self.chance, self.tree
        for _ in range(chance.randint(0, 4)):
            path = chance.choice(tree.paths)
            places = [n for n, others in enumerate(path.runners_up) if others]
            if places and chance.random() < 0.4:
                tree.fork(path, chance.choice(places))
            elif len(path.ahead) < 8 and not path.stuck:
                token, *others = chance.sample(range(4), chance.randint(1, 4))
                doubts = tuple((other, 0.2) for other in others)
                tree.grow(path, Guess(token, chance.uniform(0.05, 0.95), doubts))
        self.remember()
        if chance.random() < 0.7:
            for packet in packets(tree):
                lost = self.loss and chance.random() < 0.15
                self.under_way += [packet] * (0 if lost else chance.choice([1, 1, 1, 2]))
        if self.loss and chance.random() < 0.3:
            chance.shuffle(self.under_way)

    def arrive(self, count):
        for packet in self.under_way[:count]:
            self.cloud.add(packet)
        del self.under_way[:count]

    def verify(self):
        """The target takes some of what is best, and names one more."""
        best = self.cloud.best()
        ahead = best.ahead(len(self.committed)) if best is not None else []
        taken = ahead[: self.chance.randint(0, len(ahead))]
        self.committed += [*taken, self.chance.randrange(4)]
        self.cloud.settle()

    def hear(self):
        """The device hears some of what was committed since."""
        heard = len(self.tree._committed)
        news = self.committed[heard : heard + self.chance.randint(1, 6)]
        if news:
            commit(self.tree, *news)


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("block", range(5))
def test_the_cloud_never_goes_on_along_a_text_that_the_device_did_not_have(loss, block):
    beyond = 0
    for seed in range(30 * block, 30 * block + 30):
        walk = Walk(seed, loss=loss)
        for _ in range(60):
            walk.step()
            walk.arrive(walk.chance.randint(0, 6))
            for path in walk.cloud._paths.values():
                text = (*walk.committed[: path.start], *path.tokens)
                if not path.dead and path.end > len(walk.committed):
                    assert text in walk.had, (seed, path)
            best = walk.cloud.best()
            beyond += best is not None and best.end > len(walk.committed)
            if walk.chance.random() < 0.5:
                walk.verify()
            if walk.chance.random() < 0.5:
                walk.hear()
    assert beyond > 300, "the cloud seldom had anything"


@pytest.mark.parametrize("block", range(5))
def test_without_loss_the_cloud_knows_every_path_that_was_sent(block):
    known = 0
    for seed in range(30 * block, 30 * block + 30):
        walk = Walk(1000 + seed, loss=False)
        for _ in range(60):
            walk.step()
            walk.arrive(walk.chance.randint(0, 6))
            if walk.chance.random() < 0.5:
                walk.verify()
            if walk.chance.random() < 0.5:
                walk.hear()
            if walk.chance.random() < 0.2:
                walk.arrive(len(walk.under_way))
                there = {
                    (*walk.committed[: path.start], *path.tokens)
                    for path in walk.cloud._paths.values()
                    if not path.dead
                }
                for path in walk.tree.paths:
                    text = tuple(walk.tree.tokens(path)[: path.sent])
                    alive = text[: len(walk.committed)] == tuple(walk.committed)
                    told = path.sent > path.base and len(text) > len(walk.committed)
                    if alive and told:
                        assert text in there, (seed, path)
                        known += 1
    assert known > 100
