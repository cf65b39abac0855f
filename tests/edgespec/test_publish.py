"""Folders that several processes publish at the same time."""

import threading

import pytest

from edgespec.errors import BundleError, UsageError
from edgespec.publish import published


def refuse(out):
    if out.exists():
        raise UsageError(f"{out} exists already")


def publish(out, text, check=refuse, before=lambda: None):
    with published(out, check, BundleError) as folder:
        (folder / "file").write_text(text)
        before()


def test_of_five_writers_at_once_one_wins_and_the_others_say_so(tmp_path):
    out, ready, said = tmp_path / "out", threading.Barrier(5), []

    def write(number):
        try:
            publish(out, str(number), before=ready.wait)
            said.append(number)
        except UsageError as error:
            said.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [each for each in said if isinstance(each, int)]
    assert len(winners) == 1 and (out / "file").read_text() == str(winners[0])
    assert said.count(f"{out} exists already") == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_writer_that_may_replace_does_so(tmp_path):
    publish(tmp_path / "out", "first")
    publish(tmp_path / "out", "second", check=lambda _: None)
    assert (tmp_path / "out/file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_not_replaced(tmp_path, exists):
    place = tmp_path / "place"
    if exists:
        publish(place, "first")
    (tmp_path / "out").symlink_to(place)
    with pytest.raises(BundleError, match="out is a symbolic link"):
        publish(tmp_path / "out", "second", check=lambda _: None)
    assert (tmp_path / "out").is_symlink()
    assert not exists or (place / "file").read_text() == "first"
