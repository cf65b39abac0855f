"""Key files for encrypted links, and the cloud's folder of devices that may connect.

A pair is two files of ZeroMQ's certificate format: `NAME.key` with the public key, which may be
copied, and `NAME.key_secret` with both keys, which stays where it was made. A cloud names its
devices by a folder of public keys; `ClientFolder` follows that folder while the cloud runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG

import zmq.auth

from edgespec.errors import UsageError
from edgespec.key_files import publish_pair, warn_if_readable

log = logging.getLogger("edgespec.cloud")

PUBLIC, SECRET = ".key", ".key_secret"
_KEY_FILE_BYTES = 65_536
"""Size of a file above which it is no key file."""
_KEY_CHARS_COUNT = 40
"""Length of a key in Z85."""
_SUSPENSION_S = 30.0
"""Time for which a device that sends what no device sends is refused."""


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Writes `name`'s public and secret key file into `folder`; both, or neither.

    Raises `UsageError` for a name that is no file name, and where there is such a key already.
    """

    def write(place: Path) -> tuple[Path, Path]:
        public, secret = zmq.auth.create_certificates(place, name)
        return Path(public), Path(secret)

    return publish_pair(folder, name, (PUBLIC, SECRET), write)


def read_public(path: Path) -> bytes:
    """The key of a public key file, Z85. Raises `UsageError`, also for a secret key file."""
    public, secret = _read(path)
    if secret:
        raise UsageError(f"{path} holds a secret key, which stays where it was made; "
                         f"pass the {PUBLIC} file")  # fmt: skip
    return public


def read_pair(path: Path) -> tuple[bytes, bytes]:
    """Public and secret key of a secret key file, Z85. Raises `UsageError`.

    Warns if other users of the machine can read the file.
    """
    public, secret = _read(path)
    if not secret:
        raise UsageError(f"{path} holds no secret key; pass the {SECRET} file")
    warn_if_readable(path)
    return public, secret


def _read(path: Path) -> tuple[bytes, bytes]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no key file; make one with 'edgespec keygen'") from error
    if any(len(key) != _KEY_CHARS_COUNT for key in (public, secret or public)):
        raise UsageError(f"{path} holds no valid key; make one with 'edgespec keygen'")
    return public, secret or b""


def _key_stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What the system says of a public key file; None for anything else, as a link to nowhere."""
    try:
        stat = entry.stat()
    except OSError:
        return None
    is_key = entry.name.endswith(PUBLIC) and S_ISREG(stat.st_mode)
    return stat if is_key and stat.st_size <= _KEY_FILE_BYTES else None


class ClientFolder:
    """The public keys of the devices that may connect, read again when the folder changes.

    A file that is no public key is skipped with a warning. A folder that cannot be read keeps what
    was read last, so that a moment without it ends no session.
    """

    def __init__(self, folder: Path, interval_s: float = 0.25) -> None:
        """`interval_s`: time between two looks at the folder. Raises `UsageError`."""
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder of device keys; make it, and copy the "
                             f"{PUBLIC} files of your devices there")  # fmt: skip
        self._folder = folder
        self._state: Mapping[str, tuple[int, int]] = {}
        self._names: dict[bytes, str] = {}
        self._revoked: set[bytes] = set()
        self._suspended: dict[bytes, float] = {}
        """Monotonic time until which a key is refused."""
        self._lock = threading.Lock()
        self.refresh()
        if not self._names:
            log.warning("%s has no device keys; nobody can connect", folder)
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(interval_s,), name="device keys", daemon=True
        )
        self._thread.start()

    def name(self, key: bytes) -> str:
        """The device's name, which is its file's; empty for a key that is not admitted."""
        return self._names.get(key, "") if self.callback("", key) else ""

    def callback(self, domain: str, key: bytes) -> bool:
        """True if the key (Z85) is admitted, that is, listed and not suspended: the form that
        pyzmq's authenticator asks in."""
        del domain
        return key in self._names and time.monotonic() >= self._suspended.get(key, 0.0)

    def suspend(self, key: bytes) -> None:
        """Refuses a key for a while, and revokes what it has."""
        with self._lock:
            self._suspended[key] = time.monotonic() + _SUSPENSION_S
            self._revoked = self._revoked | {key}
        log.warning("the device %s is refused for %g s, since it sends what is not a message",
                    self._names.get(key), _SUSPENSION_S)  # fmt: skip

    def take_revoked(self) -> set[bytes]:
        """Keys that were removed or suspended since the last call."""
        if not self._revoked:
            return set()
        with self._lock:
            revoked, self._revoked = self._revoked, set()
        return revoked

    def refresh(self) -> None:
        """Reads the folder if anything in it has changed."""
        try:
            with os.scandir(self._folder) as entries:
                stats = {entry.name: stat for entry in entries if (stat := _key_stat(entry))}
        except OSError:
            return
        state = {name: (stat.st_mtime_ns, stat.st_size) for name, stat in sorted(stats.items())}
        if state == self._state:
            return
        names: dict[bytes, str] = {}
        for name in state:
            try:
                names[read_public(self._folder / name)] = name.removesuffix(PUBLIC)
            except UsageError as error:
                log.warning("a device key is skipped: %s", error)
        with self._lock:
            self._revoked = (self._revoked | set(self._names)) - set(names)
            if self._state:
                log.info("%d devices may connect", len(names))
            self._names, self._state = names, state

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self, interval_s: float) -> None:
        while not self._stopping.wait(interval_s):
            self.refresh()
