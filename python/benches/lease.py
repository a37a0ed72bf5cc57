"""Measures the cost of a lease from Python, beside other ways to get a port. Prints a table.

    python benches/lease.py [WHEEL]

Needs the package, and portpicker for its row. All files are on the file system of TMPDIR.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROUNDS = 21
START, STOP = 20000, 20999


class LeanLease:
    """The minimum that a client in Python must do: lock, check the file, probe."""

    directory = -1

    def __init__(self) -> None:
        while True:
            port = random.randint(START, STOP)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(str(port), flags, 0o1600, dir_fd=self.directory)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Other callers do not find a file that was removed in the meantime.
                if os.fstat(file).st_nlink == 1 and self._is_free(port):
                    os.pwrite(file, b"held %-250d\n" % os.getpid(), 0)
                    self.port, self._file = port, file
                    return
            except BlockingIOError:
                pass
            os.close(file)

    @staticmethod
    def _is_free(port: int) -> bool:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                probe.bind(("::", port))
            except OSError:
                return False
            # A copy of this socket in a forked child must not be in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return True

    def release(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        os.close(self._file)


def with_portlock() -> None:
    import portlock

    portlock.FreePort(START, STOP).release()


def with_lean_client() -> None:
    LeanLease().release()


def with_bind_0() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        probe.getsockname()


def with_portpicker() -> None:
    import portpicker

    portpicker.return_port(portpicker.pick_unused_port())


def microseconds(way, times: int) -> float:
    # CPU time of this process, because nothing here waits and the machine may be busy.
    start = time.process_time()
    for _ in range(times):
        way()
    return (time.process_time() - start) / times * 1e6


def import_milliseconds(module: str) -> float:
    code = f"import time; a = time.perf_counter(); import {module}; print(time.perf_counter() - a)"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, stdout=subprocess.PIPE, check=True) for _ in range(15)]
    return min(float(run.stdout) for run in runs) * 1e3


def interrupt_milliseconds() -> list[float]:
    import portlock

    taken = []
    with portlock.FreePort() as port:
        for _ in range(20):
            sent: list[float] = []

            def send(sent: list[float] = sent) -> None:
                time.sleep(0.2 + random.random() / 10)
                sent.append(time.perf_counter())
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=send).start()
            try:
                with contextlib.suppress(portlock.Exhausted):
                    portlock.FreePort(ports=port, timeout=30)
            except KeyboardInterrupt:
                taken.append((time.perf_counter() - sent[0]) * 1e3)
    return sorted(taken)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PORTLOCK_DIR"] = folder
        lean = Path(folder) / "lean"
        lean.mkdir()
        LeanLease.directory = os.open(lean, os.O_RDONLY)
        ways = {
            "portlock.FreePort": with_portlock,
            "lean flock client": with_lean_client,
            "bind(0)": with_bind_0,
        }
        with contextlib.suppress(ImportError):
            with_portpicker()
            ways["portpicker"] = with_portpicker
        # Create the files first, because a lease rarely creates one.
        for way in (with_portlock, with_lean_client):
            for _ in range(20 * (STOP - START)):
                way()
        rounds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                rounds[name].append(microseconds(way, 2000))
        for name, times in rounds.items():
            print(f"{name:20} {statistics.median(times):8.1f} µs (best {min(times):.1f})")
        ratios = [a / b for a, b in zip(rounds["portlock.FreePort"], rounds["lean flock client"])]
        print(f"{'of the lean client':20} {statistics.median(ratios):8.2f}")
        for module in ("portlock", "socket"):
            print(f"{'import ' + module:20} {import_milliseconds(module):8.1f} ms")
        taken = interrupt_milliseconds()
        print(
            f"{'Ctrl-C to exception':20} {statistics.median(taken):8.0f} ms (most {taken[-1]:.0f})"
        )
    for wheel in sys.argv[1:]:
        print(f"{'wheel':20} {os.path.getsize(wheel) / 1e6:8.1f} MB")


if __name__ == "__main__":
    main()
