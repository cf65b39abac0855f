"""The paths that a cloud keeps of a device's tree, packet by packet."""

import pytest

from cloud_runtime.paths import CandidatePaths
from edgespec.policies import SchedulerPolicy
from edgespec.protocol import Draft

POLICY = SchedulerPolicy()
KEPT, SPARE, LONGEST = POLICY.kept_paths, POLICY.spare_paths, POLICY.path_tokens

PROMPT = (10, 11, 12)


class Cloud:
    """Paths behind three committed tokens."""

    def __init__(self):
        self.committed = list(PROMPT)
        self.paths = CandidatePaths(self.committed)

    def draft(self, round_, parent, base, tokens, confidences=b""):
        return self.paths.add(Draft(1, round_, parent, base, list(tokens), confidences))

    def commit(self, *tokens):
        self.committed += tokens
        self.paths.settle()

    @property
    def ahead(self):
        """The round of the best path, and its tokens beyond the committed ones."""
        best = self.paths.best()
        return None if best is None else (best.round, best.ahead(len(self.committed)))


@pytest.fixture
def cloud():
    return Cloud()


def test_a_round_grows_packet_by_packet(cloud):
    assert cloud.ahead is None
    cloud.draft(1, 0, 3, [20, 21])
    cloud.draft(1, 0, 5, [22])
    assert cloud.ahead == (1, [20, 21, 22])
    cloud.commit(20, 21)
    assert cloud.ahead == (1, [22])
    cloud.draft(1, 0, 6, [23])
    assert cloud.ahead == (1, [22, 23])


def test_what_is_repeated_or_overlaps_adds_what_is_new(cloud):
    cloud.draft(1, 0, 3, [20, 21])
    cloud.draft(1, 0, 3, [20, 21])
    assert cloud.ahead == (1, [20, 21])
    cloud.draft(1, 0, 4, [21, 22, 23])
    assert cloud.ahead == (1, [20, 21, 22, 23])
    cloud.draft(1, 0, 4, [21])
    assert cloud.ahead == (1, [20, 21, 22, 23])


@pytest.mark.parametrize(
    ("round_", "parent", "base"),
    [
        (1, 0, 6),  # behind the end of its round
        (1, 0, 2),  # before its start
        (2, 0, 4),  # on committed text that is not there yet
        (2, 1, 6),  # behind its parent's end
        (2, 1, 2),  # before its parent's start
        (2, 7, 3),  # of a parent that never came
    ],
)
def test_a_packet_that_leaves_a_gap_is_dropped(cloud, round_, parent, base):
    cloud.draft(1, 0, 3, [20, 21])
    assert cloud.draft(round_, parent, base, [99]) is None
    assert cloud.ahead == (1, [20, 21])
    # The same round can still be told properly.
    assert cloud.draft(1, 0, 5, [22]).end == 6


def test_a_late_round_is_compared_with_what_is_committed(cloud):
    cloud.commit(20, 21)
    assert cloud.draft(1, 0, 3, [20, 21, 22]).agreed == 5
    assert cloud.ahead == (1, [22])
    assert cloud.draft(2, 0, 3, [20, 99, 22]).dead
    assert cloud.draft(3, 0, 3, [20]).end == 4
    assert cloud.ahead == (1, [22])
    cloud.commit(99)
    assert cloud.ahead is None


def test_a_branch_shares_its_parents_ids(cloud):
    cloud.draft(1, 0, 3, [20, 21, 22])
    cloud.draft(2, 1, 4, [31, 32])
    assert cloud.ahead == (1, [20, 21, 22])
    cloud.commit(20, 31)
    assert cloud.ahead == (2, [32])


def test_a_branch_of_a_branch(cloud):
    cloud.draft(1, 0, 3, [20, 21])
    cloud.draft(2, 1, 4, [31, 32])
    cloud.draft(3, 2, 5, [42])
    cloud.commit(20, 31)
    assert cloud.ahead == (2, [32])
    cloud.commit(42)
    assert cloud.ahead == (3, [])


def test_a_branch_of_a_dead_parent_lives_where_the_parent_still_agreed(cloud):
    cloud.draft(1, 0, 3, [20, 21, 22])
    cloud.commit(20, 31)
    assert cloud.ahead is None
    # Off the dead parent at the place where it died, or before it: known text.
    cloud.draft(2, 1, 4, [31, 32])
    assert cloud.ahead == (2, [32])
    # Behind it: its ids stand on one that is wrong.
    assert cloud.draft(3, 1, 5, [33]) is None
    # At a place where the parent agreed, but with another id.
    assert cloud.draft(4, 1, 3, [9, 9]).dead
    assert cloud.ahead == (2, [32])


def test_a_branch_off_committed_text_of_a_parent_that_lives(cloud):
    cloud.draft(1, 0, 3, [20, 21, 22])
    cloud.commit(20, 21)
    cloud.draft(2, 1, 5, [32])
    assert cloud.ahead == (1, [22])
    cloud.commit(32)
    assert cloud.ahead == (2, [])
    cloud.draft(2, 1, 6, [33])
    assert cloud.ahead == (2, [33])


def test_the_best_is_the_oldest_that_goes_on(cloud):
    cloud.draft(2, 0, 3, [20, 22])
    cloud.draft(1, 0, 3, [20])
    assert cloud.ahead == (1, [20])
    cloud.commit(20)
    assert cloud.ahead == (2, [22]), "the older one has nothing beyond the text"
    cloud.commit(22)
    assert cloud.ahead == (2, [])


def test_a_round_that_falls_behind_is_left(cloud):
    cloud.draft(1, 0, 3, [20])
    cloud.commit(20, 21)
    assert cloud.ahead is None
    cloud.draft(1, 0, 4, [21, 22])
    assert cloud.ahead == (1, [22])


def test_confidences_are_kept_and_the_estimate_learns_from_committed_tokens(cloud):
    cloud.draft(1, 0, 3, [20, 21], b"\xff\x33")
    path = cloud.draft(1, 0, 4, [21, 22], b"\x00\x66")
    assert path.confidences_ahead(3) == pytest.approx([1.0, 0.2, 0.4])
    assert cloud.draft(2, 1, 4, [30], b"\x99").confidences_ahead(3) == pytest.approx([1.0, 0.6])
    assert cloud.draft(3, 0, 3, [7, 8]).confidences_ahead(3) == [0.5, 0.5]
    before = cloud.paths.estimate.acceptance
    cloud.commit(99)
    assert cloud.paths.estimate.acceptance < before
    before = cloud.paths.estimate.acceptance
    cloud.draft(4, 0, 4, [50])
    cloud.commit(50)
    assert cloud.paths.estimate.acceptance > before


def test_an_id_is_judged_once(cloud):
    cloud.draft(1, 0, 3, [20])
    cloud.commit(20)
    before = cloud.paths.estimate.acceptance
    for _ in range(3):
        cloud.paths.settle()
        cloud.draft(1, 0, 3, [20])
    assert cloud.paths.estimate.acceptance == before


def test_a_round_whose_beginning_was_lost_is_dropped(cloud):
    """Its first packet stood at position 3, where the cloud has committed other tokens since."""
    cloud.commit(20, 21)
    assert cloud.draft(1, 1, 5, [22]) is None
    assert cloud.ahead is None


def test_the_main_path_outlives_many_branches(cloud):
    cloud.draft(1, 0, 3, [20], b"\xf0")
    for number in range(2, 3 * KEPT):
        cloud.draft(number, 1, 3, [30 + number], b"\x05")
    assert cloud.draft(1, 1, 4, [21], b"\xf0").end == 5
    assert cloud.ahead == (1, [20, 21])


def test_what_is_kept_is_bounded(cloud):
    for number in range(1, 3 * KEPT):
        cloud.draft(number, 0, 3, [number])
    oldest, ids = cloud.ahead
    assert ids == [oldest] and KEPT <= 3 * KEPT - oldest <= KEPT + SPARE, "the oldest went"
    for place in range(3, 3 + 3 * LONGEST, 50):
        cloud.draft(3 * KEPT - 1, 0, 3, [3 * KEPT - 1])
        cloud.draft(3 * KEPT - 1, 0, place + 1, range(50))
    cloud.commit(3 * KEPT - 1)
    assert len(cloud.ahead[1]) == LONGEST - 1
