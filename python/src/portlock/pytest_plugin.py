"""Fixtures for pytest: ports that no other test, worker or test run gets.

With `portlock_override = true` in the ini file, the fixtures of anyio and pytest-asyncio return
leased ports too, under their own names.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING

import pytest

from . import Exhausted, FreePort, InvalidPorts, PortSet, server_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Unpack

    from ._native import Options, Protocol


class FreePortFactory:
    """Leases a port at each call, and releases all of them at the end of the test or session."""

    def __init__(self, config: pytest.Config, *, protocol: Protocol = "tcp") -> None:
        self._ports = _ports(config)
        self._protocol: Protocol = protocol
        self._lock = Lock()
        self._leases: list[tuple[str, FreePort]] = []

    def __call__(self, **options: Unpack[Options]) -> FreePort:
        """Leases a port, with the arguments of FreePort. The label is the id of the test."""
        test = _current_test()
        options.setdefault("label", test)
        if "protocol" not in options:
            options["protocol"] = self._protocol
        if not options.keys() & {"ports", "start", "stop", "name"}:
            options["ports"] = self._ports
        try:
            lease = FreePort.try_new(**options)
        except Exhausted:
            self._release_those_of_ended_tests(test)
            lease = FreePort(**options)
        with self._lock:
            self._leases.append((test, lease))
        return lease

    def number(self) -> int:
        """Leases a port, and returns its number."""
        return self().port

    def _release_those_of_ended_tests(self, test: str) -> None:
        """Releases the ports of ended tests. Only a suite with more tests than ports needs this.

        A server of the session that is still running keeps its port, because it has bound it.
        """
        with self._lock:
            ended = [lease for label, lease in self._leases if label != test]
            self._leases = [(label, lease) for label, lease in self._leases if label == test]
        for lease in ended:
            lease.release()

    def release(self) -> None:
        """Ends all leases."""
        with self._lock:
            leases = [lease for _, lease in self._leases]
            self._leases.clear()
        for lease in leases:
            with lease:  # Does not end the lease in a forked copy.
                pass


def _ports(config: pytest.Config) -> PortSet:
    text = config.getoption("portlock_ports")
    return PortSet(text) if text else server_ports()


def _current_test() -> str:
    """Returns the id of the running test, without its phase."""
    return os.environ.get("PYTEST_CURRENT_TEST", "pytest").rpartition(" (")[0] or "pytest"


def factory_until_end(
    config: pytest.Config, protocol: Protocol = "tcp"
) -> Iterator[FreePortFactory]:
    """Yields a factory, for a fixture, and releases its ports at the end."""
    factory = FreePortFactory(config, protocol=protocol)
    try:
        yield factory
    finally:
        factory.release()


@pytest.fixture
def free_port_factory(request: pytest.FixtureRequest) -> Iterator[FreePortFactory]:
    """Leases a port at each call, until the end of the test."""
    yield from factory_until_end(request.config)


@pytest.fixture(scope="session")
def session_free_port_factory(request: pytest.FixtureRequest) -> Iterator[FreePortFactory]:
    """Leases a port at each call, until the end of the session."""
    yield from factory_until_end(request.config)


@pytest.fixture
def free_port(free_port_factory: FreePortFactory) -> FreePort:
    """A port that is leased until the end of the test."""
    return free_port_factory()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("portlock", "free ports as leases")
    group.addoption(
        "--portlock-ports",
        metavar="SET",
        help="the ports to choose from, such as 20000-20999,!20443 (default: PORTLOCK_PORTS, or "
        "what this machine leaves to servers)",
    )
    parser.addini(
        "portlock_override",
        "lease the ports of the fixtures of anyio and pytest-asyncio too",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        if not _ports(config):
            raise InvalidPorts("there are no ports to choose from")
    except InvalidPorts as error:
        # Without the option, the message names the variable.
        option = "--portlock-ports: " if config.getoption("portlock_ports") else ""
        raise pytest.UsageError(f"{option}{error}") from None
    if config.getini("portlock_override"):
        from . import _pytest_override

        # If several plugins have a fixture of the same name, pytest uses that of the plugin that is
        # registered last. All installed plugins are registered before any is configured.
        config.pluginmanager.register(_pytest_override, "portlock-override")
