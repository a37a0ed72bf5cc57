"""Shared fixtures. Each test has its own lock directory, and ports that no other test has."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from portlock import FreePort, server_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytest_plugins = ["pytester"]

# Only a bound, in seconds: no test takes nearly as long.
LONG = 60

_HOLD = "import sys; sys.stdin.read()"


def pytest_configure() -> None:
    # A shell without job control starts background jobs with SIGINT ignored, and what the
    # tests start would inherit that.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def lock_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("locks")
    monkeypatch.setenv("PORTLOCK_DIR", str(path))
    for name in ("PORTLOCK_PORTS", "PORTLOCK_PORTS_FILE", "PORTSERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def block() -> Iterator[Callable[[int], range]]:
    """Returns contiguous ports that another process has leased, in the directory of all users."""
    holders: list[subprocess.Popen[bytes]] = []

    def lease(n: int) -> range:
        holder = subprocess.Popen([sys.executable, "-c", _HOLD], stdin=subprocess.PIPE)
        holders.append(holder)
        # By this process: it can lease no port twice, whatever the directory, and some tests keep
        # ports until it ends. Delegated, so that it can lease these in the test's directory.
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("PORTLOCK_DIR")
            ports = FreePort.block(n, ports=server_ports(), label="tests of portlease")
        for port in ports:
            port.delegate_to(holder.pid)
        return range(ports[0].port, ports[0].port + n)

    yield lease
    for holder in holders:
        holder.communicate(timeout=LONG)


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Runs a program in a separate process, and returns its output."""

    def run(code: str, *arguments: object, **options: object) -> str:
        path = tmp_path / "script.py"
        path.write_text(code)
        command = [sys.executable, "-W", "error::ResourceWarning", str(path)]
        outcome = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=3 * LONG,
            **options,  # type: ignore[call-overload]
        )
        assert outcome.returncode == 0, outcome.stderr
        assert not outcome.stderr
        return outcome.stdout

    return run
