"""The fixtures of anyio (free_*) and pytest-asyncio (unused_*), with leased ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .pytest_plugin import factory_until_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def free_tcp_port_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], int]]:
    """Returns a new TCP port at each call, leased until the end of the session."""
    for factory in factory_until_end(request.config):
        yield factory.number


@pytest.fixture(scope="session")
def free_udp_port_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], int]]:
    """Returns a new UDP port at each call, leased until the end of the session."""
    for factory in factory_until_end(request.config, "udp"):
        yield factory.number


@pytest.fixture
def free_tcp_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A TCP port, leased until the end of the test."""
    for factory in factory_until_end(request.config):
        yield factory.number()


@pytest.fixture
def free_udp_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A UDP port, leased until the end of the test."""
    for factory in factory_until_end(request.config, "udp"):
        yield factory.number()


unused_tcp_port_factory = free_tcp_port_factory
unused_udp_port_factory = free_udp_port_factory
unused_tcp_port = free_tcp_port
unused_udp_port = free_udp_port
