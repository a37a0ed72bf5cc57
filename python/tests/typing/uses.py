"""Code that a type checker must accept, or reject where a comment says so."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import portlock
from portlock import BindFreePort, FreePort, PortSet
from portlock.aio import lease
from portlock.compat import portpicker, pysys, recipe, socket_helper


def constructors() -> None:
    port: FreePort = FreePort()
    port = FreePort(4000, 6000, timeout=1.5, label="x", lock_dir=Path("/tmp"))
    port = FreePort(ports="4000-4999", hosts=["::1", ipaddress.ip_address("127.0.0.1")])
    port = FreePort(ports=range(4000, 5000), protocol="tcp+udp", reuse_address=True)
    port = FreePort(ports=PortSet([1, 2]), name="web", root=".", prefer=None, hold_socket=True)
    port = FreePort.try_new(ports=port)
    ports: list[FreePort] = FreePort.many(2, 4000, 6000, label="y")
    ports = FreePort.block(2) + FreePort.offsets([0, 1], start=4000)
    pair: tuple[FreePort, socket.socket] = FreePort.listen(hosts="127.0.0.1")
    FreePort(protocol="sctp")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FreePort(timeout="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FreePort.many(2, no_such=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    del ports, pair


def methods(port: FreePort) -> None:
    number: int = port.port + int(port) + port.delegate_to(1) + port.detach_fd()
    with port as same, socket.create_connection(same.addr):
        range(10)[same]
    port.wait_until_listening(timeout=1)
    server: tuple[int, str] | None = port.wait_for_server(1, timeout=2)
    port.port = 4000  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    del number, server


def functions() -> None:
    ports: PortSet = portlock.server_ports() - PortSet(portlock.ephemeral_port_range())
    numbers: list[int] = sorted(ports)
    entries: list[portlock.Entry] = portlock.entries(os.fspath(portlock.lock_dir()))
    removed, kept = portlock.clean()
    with BindFreePort(4000, 6000) as probe:
        numbers.append(probe.port + removed + kept + entries[0].port)


def errors() -> None:
    try:
        FreePort()
    except portlock.Exhausted as error:
        leased: int | None = error.counts.leased if error.counts else None
        holder: str | None = error.holders.get(4000)
        del leased, holder
    except portlock.PortlockError as error:
        print(error.kind, error.errno, error.filename)


async def asynchronous() -> int:
    async with lease(4000, 6000, timeout=1) as port:
        other: FreePort = await lease(label="x")
        return port.port + other.port


def compat() -> None:
    number: int = portpicker.pick_unused_port(pid=None) + pysys.TCPPortOwner().port
    number += socket_helper.find_unused_port() + recipe.get_free_port().port
    free: bool = portpicker.is_port_free(number) or pysys.portIsInUse(number)
    del free
