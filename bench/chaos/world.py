"""A world: one cloud, one link and some devices, each a process, and the faults of each."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from bench.chaos.attacks import ATTACKS, Victim
from bench.chaos.device_process import Report
from bench.chaos.figures import CloudUse, Ledger
from bench.chaos.settings import ChaosSettings, CloudOptions, DeviceOptions
from bench.chaos.toy import CONTEXT_TOKENS
from bench.lab.processes import resident_mb
from edgespec.errors import EdgespecError
from edgespec.keys import make_keys
from edgespec.policies import LinkLimits

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 100.0
"""Time in which the answers in flight must end after the last fault."""
SETTLE_S = 6.5
"""Time without another fault after a cut whose recovery is measured."""
SAMPLE_S = 0.1
VANISHED_MARGIN_S = 3.0
"""Time beyond the limit in which the connections of peers that vanished must be closed."""
SESSION_BYTES = 8 * CONTEXT_TOKENS


class Device:
    """A device's process, and the answers that it has in flight."""

    def __init__(self, world: World, options: DeviceOptions) -> None:
        self._world = world
        self.open: dict[int, Report] = {}
        self.expected_end = False
        """True once this process was killed or asked to end."""
        self.process = _python("bench.chaos.device_process", options, stderr=world.log)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                report = msgspec.json.decode(line, type=Report)
            except msgspec.DecodeError:  # it was killed in the middle of a line
                continue
            if report.tokens is None:
                self.open[report.session] = report
            else:
                self.open.pop(report.session, None)
                self._world.ledger.ended(report, self._world.cuts)
        if not self.expected_end:
            self._world.ledger.crash(f"a device ended with code {self.process.wait()}")

    def end(self) -> None:
        """Kills the process, if it still runs, and reads what it has printed."""
        self.expected_end = True
        self.process.kill()
        self._reader.join()
        _end(self.process)

    def kill(self) -> None:
        self.end()
        self._world.ledger.counts["abandoned"] += len(self.open)

    def finish(self, end: float) -> None:
        """Waits until it has ended, as it was asked to; answers still open then are lost."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, end - time.monotonic()))
        self.end()
        for report in self.open.values():
            self._world.ledger.lost(report, "it never ended")


class World:
    """Use it in a `with` statement, which ends every process."""

    def __init__(
        self, name: str, folder: Path, settings: ChaosSettings, ledger: Ledger, *, keys: bool
    ) -> None:
        self.name, self.ledger = name, ledger
        self.use = CloudUse()
        self.cuts: list[float] = []
        """Times of the cuts whose recovery is measured."""
        self.log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed in __exit__
        self._settings = settings
        self._chance = random.Random(f"{name} {settings.seed}")
        self._port = _free_port()
        self._folder = folder if keys else None
        if keys:
            make_keys(folder, "cloud")
            (folder / "clients").mkdir()
            for number in range(settings.devices):
                self._device_key(f"device-{number}")
            self._device_key("attacker")
        self._devices: list[Device] = []
        self._cloud = self._start_cloud(varied=False)
        self.use.first_mb, self.use.first_files = self._cloud_use()
        self._proxy = _spawn("bench.chaos.proxy", str(self._port), stderr=self.log)
        assert self._proxy.stdout is not None
        self._link = f"tcp://{HOST}:{int(self._proxy.stdout.readline())}"
        self._devices = [self._device(number) for number in range(settings.devices)]
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampler.join()
        for device in self._devices:
            device.end()
        for process in (self._proxy, self._cloud):
            _end(process)
        self.log.close()

    # Processes

    def _device_key(self, name: str) -> None:
        assert self._folder is not None
        public, _ = make_keys(self._folder, name)
        (self._folder / "clients" / public.name).write_bytes(public.read_bytes())

    def _file(self, name: str) -> str:
        return str(self._folder / name) if self._folder else ""

    def _start_cloud(self, *, varied: bool = True) -> subprocess.Popen[str]:
        """Raises `EdgespecError` if it does not listen in time."""
        chance = self._chance
        busiest = self._settings.devices * self._settings.answers
        options = CloudOptions(
            bind=f"tcp://{HOST}:{self._port}",
            key=self._file("cloud.key_secret"),
            clients=self._file("clients"),
            max_sessions=chance.choice([busiest + 2, 64, 256]) if varied else 64,
            kv_memory=chance.choice([0, 3 * SESSION_BYTES]) if varied else 0,
            cloud_draft=varied and chance.random() < 0.5,
            hints=not varied or chance.random() < 0.5,
        )
        process = _python("bench.chaos.cloud_process", options, stderr=self.log)
        watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
        watchdog.start()
        assert process.stdout is not None
        ready = process.stdout.readline()
        watchdog.cancel()
        if not ready:
            raise EdgespecError(f"a cloud did not start: {self._last_log()}")
        return process

    def _last_log(self) -> str:
        self.log.seek(0)
        return " / ".join(self.log.read().splitlines()[-4:])

    def _device(self, number: int) -> Device:
        name = f"device-{number}"
        return Device(
            self,
            DeviceOptions(
                connect=self._link,
                name=name,
                seed=self._chance.getrandbits(62),
                answers=self._settings.answers,
                server_key=self._file("cloud.key"),
                key=self._file(f"{name}.key_secret"),
            ),
        )

    def _cloud_use(self) -> tuple[float, int]:
        """Memory in MB and file descriptors of the cloud; zeros if it is not there."""
        pid = self._cloud.pid
        try:
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            files = 0
        return resident_mb(pid), files

    def _sample(self) -> None:
        use = self.use
        while not self._over.wait(SAMPLE_S):
            memory, files = self._cloud_use()
            use.peak_mb, use.peak_files = max(use.peak_mb, memory), max(use.peak_files, files)

    # Faults

    def torment(self, end: float) -> None:
        """Injects one fault after another until `end`, by the monotonic clock."""
        faults: list[tuple[str, float, Callable[[], None]]] = [
            ("cloud killed", 2, self._kill_cloud),
            ("cloud drained", 1, self._drain_cloud),
            ("cloud paused", 2, lambda: self._pause(self._cloud)),
            ("device killed", 1, self._kill_device),
            ("device paused", 2, lambda: self._pause(self._chance.choice(self._devices).process)),
            ("link cut, measured", 4, self._cut_and_settle),
            ("links cut in a row", 2, self._cut_often),
            ("link stalled", 2, lambda: self._tell(f"stall {self._seconds(0.1, 3.0, 12.0)}")),
            ("link fragmented", 2, lambda: self._tell(f"fragment {self._seconds(1.0, 4.0, 8.0)}")),
            *((f"attack: {kind}", 0.6, self._attack(kind)) for kind in ATTACKS),
        ]
        weights = [weight for _, weight, _ in faults]
        while time.monotonic() < end:
            ((kind, _, inject),) = self._chance.choices(faults, weights)
            self.ledger.fault(kind)
            inject()
            time.sleep(self._chance.uniform(0, 1.0))
            if (code := self._cloud.poll()) is not None:
                self.ledger.crash(
                    f"a cloud ended with code {code} after {kind}: {self._last_log()}"
                )
                _end(self._cloud)
                self._cloud = self._start_cloud()

    def finish(self) -> None:
        """Ends all devices once their answers have ended, and reads the cloud's last figures."""
        end = time.monotonic() + FINISH_TIMEOUT_S
        for device in self._devices:
            device.expected_end = True
            device.process.terminate()
        for device in self._devices:
            device.finish(end)
        end = time.monotonic() + LinkLimits().vanished_s + VANISHED_MARGIN_S
        time.sleep(1.0)
        while self._cloud_use()[1] > self.use.first_files and time.monotonic() < end:
            time.sleep(SAMPLE_S)
        self.use.final_mb, self.use.final_files = self._cloud_use()

    def _seconds(self, least: float, most: float, rare: float) -> float:
        """A random time, one in ten of them longer than usual."""
        chance = self._chance
        return chance.uniform(most, rare) if chance.random() < 0.1 else chance.uniform(least, most)

    def _restart(self) -> None:
        self._cloud.wait()
        _end(self._cloud)
        time.sleep(self._seconds(0.0, 1.0, 4.0))
        self._cloud = self._start_cloud()

    def _kill_cloud(self) -> None:
        self._cloud.kill()
        self._restart()

    def _drain_cloud(self) -> None:
        self._cloud.terminate()
        self._restart()

    def _kill_device(self) -> None:
        number = self._chance.randrange(len(self._devices))
        self._devices[number].kill()
        self._devices[number] = self._device(number)

    def _pause(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(self._seconds(0.05, 2.0, 12.0))
        process.send_signal(signal.SIGCONT)

    def _tell(self, order: str) -> None:
        assert self._proxy.stdin is not None
        self._proxy.stdin.write(order + "\n")
        self._proxy.stdin.flush()

    def _cut_and_settle(self) -> None:
        time.sleep(SETTLE_S / 2)  # earlier faults are over
        self.cuts.append(time.monotonic())
        self._tell("cut 1")
        time.sleep(SETTLE_S)

    def _cut_often(self) -> None:
        for _ in range(self._chance.randint(2, 30)):
            self._tell(f"cut {self._chance.choice([0.3, 1])}")
            time.sleep(self._chance.uniform(0.01, 0.2))

    def _attack(self, kind: str) -> Callable[[], None]:
        def inject() -> None:
            sessions = [session for device in self._devices for session in list(device.open)]
            paths = [
                self._folder and self._folder / name
                for name in ("cloud.key", "attacker.key_secret")
            ]
            ATTACKS[kind](Victim(self._port, paths[0], paths[1], sessions, self._chance))

        return inject


def _python(module: str, options: msgspec.Struct, stderr: IO[str]) -> subprocess.Popen[str]:
    return _spawn(module, msgspec.json.encode(options).decode(), stderr=stderr)


def _spawn(module: str, argument: str, stderr: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
