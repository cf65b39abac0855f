"""Key files, and the folder of devices that may connect."""

import time

import pytest

from edgespec.errors import UsageError
from edgespec.keys import ClientFolder, make_keys, read_pair, read_public
from edgespec.protocol import MAX_FRAMES, VERSION, Hello, Welcome
from edgespec.transport import DealerLink, RouterHub

HELLO = Hello(VERSION, "target", "tokenizer", "a device")
WELCOME = Welcome(VERSION, "target", "tokenizer", 8192, 32, [], 20.0, 1.0, 0.0, 0.0)


def test_a_pair_is_made_whole_and_never_over_another(tmp_path):
    public, secret = make_keys(tmp_path / "keys", "robot-7")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert read_pair(secret)[0] == read_public(public)
    assert sorted(path.name for path in public.parent.iterdir()) == [
        "robot-7.key", "robot-7.key_secret",
    ]  # fmt: skip
    before = secret.read_bytes()
    with pytest.raises(UsageError, match="holds a key already"):
        make_keys(tmp_path / "keys", "robot-7")
    assert secret.read_bytes() == before


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65, "new\nline"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="is no name for a key"):
        make_keys(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_a_pair(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgespec.keys.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make_keys(tmp_path, "cloud")
    assert not list(tmp_path.iterdir())


def test_a_secret_that_others_can_read_is_said(tmp_path, caplog):
    _, secret = make_keys(tmp_path, "cloud")
    read_pair(secret)
    assert not caplog.messages
    secret.chmod(0o644)
    read_pair(secret)
    assert "can be read by other users" in caplog.text


def test_the_folder_is_followed(tmp_path, caplog):
    folder = tmp_path / "clients"
    folder.mkdir()
    public, _ = make_keys(tmp_path, "robot")
    (folder / "broken.key").write_text("no key")
    clients = ClientFolder(folder, interval_s=30)
    try:
        key = read_public(public)
        assert not clients.callback("*", key)
        assert "broken.key is no key file" in caplog.text
        (folder / "robot.key").write_bytes(public.read_bytes())
        clients.refresh()
        assert clients.callback("*", key) and clients.name(key) == "robot"
        (folder / "robot.key").rename(folder / "rover.key")
        clients.refresh()
        assert clients.name(key) == "rover" and clients.take_revoked() == set()
        (folder / "rover.key").unlink()
        clients.refresh()
        assert not clients.callback("*", key)
        assert clients.take_revoked() == {key}
        assert clients.take_revoked() == set()
    finally:
        clients.close()


def answers(hub, link, seconds=5.0):
    """Says hello; True if the cloud hears it and its welcome arrives."""
    link.send(HELLO)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for peer, _ in hub.receive(0.02):
            hub.send(peer, WELCOME)
        hub.take_revoked()
        if any(isinstance(message, Welcome) for message in link.receive(0.02)):
            return True
    return False


def test_a_device_that_attacks_is_refused_for_a_while_and_the_others_notice_nothing(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("edgespec.keys._SUSPENSION_S", 1.5)
    cloud, cloud_secret = make_keys(tmp_path, "cloud")
    folder = tmp_path / "clients"
    pairs = {name: make_keys(folder, name) for name in ("one", "two")}
    hub = RouterHub("tcp://127.0.0.1:*", cloud_secret, clients=folder)
    links = {
        name: DealerLink(hub.endpoint, cloud, key=secret) for name, (_, secret) in pairs.items()
    }
    try:
        assert answers(hub, links["one"]) and answers(hub, links["two"])
        links["one"]._socket.send_multipart([b""] * (MAX_FRAMES + 1))
        revoked, end = set(), time.monotonic() + 5
        while not revoked and time.monotonic() < end:
            hub.receive(0.02)
            revoked = hub.take_revoked()
        assert revoked == {read_public(pairs["one"][0])}
        assert "the device one is refused" in caplog.text
        assert not answers(hub, links["one"], 0.5)
        assert answers(hub, links["two"])
        time.sleep(1.0)
        links["one again"] = DealerLink(hub.endpoint, cloud, key=pairs["one"][1])
        assert answers(hub, links["one again"])
    finally:
        for link in links.values():
            link.close()
        hub.close()


def test_a_removed_device_is_shut_out_and_the_others_notice_nothing(tmp_path):
    cloud, cloud_secret = make_keys(tmp_path, "cloud")
    folder = tmp_path / "clients"
    pairs = {name: make_keys(tmp_path, name) for name in ("one", "two", "stranger")}
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.key").write_bytes(pairs[name][0].read_bytes())
    hub = RouterHub("tcp://127.0.0.1:*", cloud_secret, clients=folder)
    links = {
        name: DealerLink(hub.endpoint, cloud, key=secret) for name, (_, secret) in pairs.items()
    }
    unnamed = DealerLink(hub.endpoint, cloud)
    try:
        assert answers(hub, links["one"]) and answers(hub, links["two"])
        assert not answers(hub, links["stranger"], 0.5)
        assert not answers(hub, unnamed, 0.5)
        owners = {hub.owner(peer.id) for peer in hub._peers}
        assert owners == {read_public(pairs[name][0]) for name in ("one", "two")}
        (folder / "one.key").unlink()
        began, revoked = time.monotonic(), set()
        while not revoked and time.monotonic() < began + 5:
            hub.receive(0.02)
            revoked = hub.take_revoked()
        assert revoked == {read_public(pairs["one"][0])}
        assert time.monotonic() - began < 1.0
        assert not answers(hub, links["one"], 0.7)
        assert answers(hub, links["two"])
    finally:
        for link in (*links.values(), unnamed):
            link.close()
        hub.close()


def test_devices_with_names_need_a_cloud_with_a_key(tmp_path):
    tmp_path.joinpath("clients").mkdir()
    with pytest.raises(UsageError, match="pass --key"):
        RouterHub("tcp://127.0.0.1:*", clients=tmp_path / "clients")
    with pytest.raises(UsageError, match="pass --server-key"):
        DealerLink("tcp://127.0.0.1:5555", key=tmp_path / "robot.key_secret")
