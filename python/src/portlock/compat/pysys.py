"""The port allocation of the test framework PySys, `pysys.utils.allocport`, as of version 2.2.

Here each port is leased, so several test runs on one machine share its ports. install()
replaces that module with this one. Call it before the runner is created, for example at the top of
the module of a custom runner.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from portlock import FreePort, InvalidPorts, PortSet, _native, server_ports

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "TCPPortOwner",
    "allocateTCPPort",
    "excludedTCPPorts",
    "getEphemeralTCPPortRange",
    "getServerTCPPorts",
    "initializePortPool",
    "install",
    "logPortAllocationStats",
    "portIsInUse",
    "tcpServerPortPool",
]

_log = logging.getLogger("pysys.allocport")

excludedTCPPorts: set[int] = set(
    PortSet("1719-1720,1723,2049,3659,4045,4190,5060-5061,6000,6566,6665-6669,6679,6697,10080")
)
"""Ports that are never allocated, because browsers refuse them. You may change the set."""

tcpServerPortPool: list[int] | None = None
"""The ports to choose from, once initializePortPool() has run."""


class _Pool:
    """The ports that this process has allocated."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.leases: dict[int, FreePort] = {}
        self.peak = 0
        self.total = 0


_pool = _Pool()


def _forget() -> None:
    """Forgets the parent's ports, and its lock, which a thread may have held at the fork."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def install() -> None:
    """Replaces PySys's own module with this one."""
    this = sys.modules[__name__]
    sys.modules["pysys.utils.allocport"] = this
    vars(importlib.import_module("pysys.utils"))["allocport"] = this
    # This module imports the class by its name.
    user = sys.modules.get("pysys.process.user")
    if user is not None:
        vars(user)["TCPPortOwner"] = TCPPortOwner


def getEphemeralTCPPortRange() -> tuple[int, int]:
    """Returns the first and the last port that the system assigns to clients."""
    return _native.ephemeral_port_range()


def getServerTCPPorts() -> list[int]:
    """Returns the ports that tests can use for servers.

    PYSYS_PORTS or PYSYS_PORTS_FILE names them, or else PORTLOCK_PORTS or PORTLOCK_PORTS_FILE. By
    default they are the ports that this machine leaves to servers.
    """
    ports = _named_ports()
    if ports is None:
        ports = server_ports()
        if not _is_named_otherwise():
            # A custom runner may have replaced the function.
            first, last = getEphemeralTCPPortRange()
            ports = ports - PortSet(range(first, last + 1))
    return [port for port in ports if port not in excludedTCPPorts]


def _is_named_otherwise() -> bool:
    return any(os.environ.get(name) for name in ("PORTLOCK_PORTS", "PORTLOCK_PORTS_FILE"))


def _named_ports() -> PortSet | None:
    text = os.environ.get("PYSYS_PORTS")
    path = os.environ.get("PYSYS_PORTS_FILE")
    if text:
        origin = f"PYSYS_PORTS={text!r}"
    elif path:
        origin = f"PYSYS_PORTS_FILE={path!r}"
        text = Path(path).read_text(encoding="utf-8")
    else:
        return None
    try:
        # PySys accepts spaces on both sides of the dash.
        parts = [part.replace(" ", "") for line in text.splitlines() for part in line.split(",")]
        return PortSet(",".join(parts))
    except InvalidPorts as error:
        raise InvalidPorts(f"{origin}: {error}") from None


def initializePortPool() -> None:
    """Determines the ports to choose from. Otherwise the first allocation determines them."""
    global tcpServerPortPool
    tcpServerPortPool = getServerTCPPorts()


def portIsInUse(
    port: int,
    host: str = "",
    socketAddressFamily: int = socket.AF_INET,
    type: int = socket.SOCK_STREAM,
    proto: int = 0,
) -> bool:
    """Returns whether a port is in use on a host, or leased."""
    hosts = _addresses([host], socketAddressFamily)
    request = _native.Request(ports=port, hosts=hosts, protocol=_protocol(type))
    return not request.is_free()


def allocateTCPPort(
    hosts: Sequence[str] = ("", "localhost"),
    socketAddressFamily: int = socket.AF_INET,
    type: int = socket.SOCK_STREAM,
    proto: int = 0,
) -> int:
    """Returns a port that is leased until this process ends."""
    return _allocate(hosts, socketAddressFamily, type).port


class TCPPortOwner:
    """Owns a port from its creation to cleanup(), or until this process ends.

    hosts: names or addresses on which the port must be free; "" is every address.
    """

    def __init__(
        self,
        hosts: Sequence[str] = ("", "localhost"),
        socketAddressFamily: int = socket.AF_INET,
    ) -> None:
        self._pool = _pool
        self._lease = _allocate(hosts, socketAddressFamily, socket.SOCK_STREAM)
        self.port = self._lease.port

    def cleanup(self) -> None:
        """Ends the lease."""
        with self._pool.lock:
            self._pool.leases.pop(self.port, None)
        # Leaving the block does not end the lease in a forked copy.
        with self._lease:
            pass


def _allocate(hosts: Sequence[str], family: int, kind: int) -> FreePort:
    if tcpServerPortPool is None:
        initializePortPool()
    ports = PortSet(port for port in tcpServerPortPool or () if port not in excludedTCPPorts)
    pool = _pool
    lease = FreePort(
        ports=ports,
        hosts=_addresses(hosts, family),
        protocol=_protocol(kind),
        timeout=_timeout(),
        label="pysys",
    )
    with pool.lock:
        # Kept here, as in PySys, if its owner is dropped without a cleanup.
        pool.leases[lease.port] = lease
        pool.total += 1
        pool.peak = max(pool.peak, len(pool.leases))
    return lease


def _timeout() -> float:
    """Returns how long PySys waits for a port."""
    constants = sys.modules.get("pysys.constants")
    timeouts = getattr(constants, "TIMEOUTS", {})
    return float(timeouts.get("WaitForAvailableTCPPort", 300))


def _protocol(kind: int) -> _native.Protocol:
    return "udp" if kind == socket.SOCK_DGRAM else "tcp"


def _addresses(hosts: Sequence[str], family: int) -> list[str]:
    every = "::" if family == socket.AF_INET6 else "0.0.0.0"
    addresses: list[str] = []
    for host in hosts:
        if not host:
            addresses.append(every)
            continue
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
        addresses.extend(str(address[0]).partition("%")[0] for *_, address in found)
    return addresses


def logPortAllocationStats(
    logger: logging.Logger = logging.getLogger("pysys.portAllocationStats"),  # noqa: B008
) -> dict[str, int]:
    """Logs how many ports this process has allocated, at level debug, and returns the numbers."""
    with _pool.lock:
        stats = {
            "totalServerPorts": len(tcpServerPortPool or ()),
            "peakAllocatedPorts": _pool.peak,
            "lifetimeTotalAllocatedPorts": _pool.total,
        }
    logger.debug("TCP server port allocation: %s", stats)
    return stats
