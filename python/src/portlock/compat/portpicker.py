"""The functions of the package portpicker, as of version 1.6.0. Here each port is leased.

    import portlock.compat.portpicker as portpicker

A port that is picked stays leased until it is returned, or until this process ends. As in
portpicker, a port server is asked first if there is one.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from portlock import Exhausted, FreePort, PortlockError, ProcessError, _native, server_ports

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "NoFreePortFoundError",
    "add_reserved_port",
    "bind",
    "get_port_from_port_server",
    "is_port_free",
    "pick_unused_port",
    "return_port",
]

# A port server checks whether a port is in use before it answers.
_SERVER_TIMEOUT = 60.0

# portpicker has these names too, and some tests clear the sets: the ports to pick first, the ports
# that a server or the caller has assigned, and the ports that were leased here.
_free_ports: set[int] = set()
_owned_ports: set[int] = set()
_random_ports: set[int] = set()

_leases: dict[int, FreePort] = {}

# portpicker's module for named pipes on Windows. Here the library has its own client.
_winapi = None


class NoFreePortFoundError(Exception):
    """No port is free."""


def _forget() -> None:
    """Forgets the parent's ports. The leases themselves detect a fork."""
    for ports in (_free_ports, _owned_ports, _random_ports):
        ports.clear()
    _leases.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def pick_unused_port(pid: int | None = None, portserver_address: str | None = None) -> int:
    """Returns a port that is free for TCP and UDP, leased until return_port() or the process ends.

    With the pid of another process, the lease belongs to that process.
    """
    try:
        port = _free_ports.pop()
    except KeyError:
        pass
    else:
        _owned_ports.add(port)
        return port
    for address in (portserver_address, os.environ.get("PORTSERVER_ADDRESS")):
        served = get_port_from_port_server(address, pid=pid) if address else None
        if served:
            return served
    if pid is None or pid == os.getpid():
        return _pick_unused_port_without_server()
    return _pick_for(pid)


def _pick_unused_port_without_server() -> int:
    try:
        lease = FreePort(ports=server_ports(), protocol="tcp+udp", label="portpicker")
    except Exhausted as error:
        raise NoFreePortFoundError(str(error)) from error
    _leases[lease.port] = lease
    _random_ports.add(lease.port)
    return lease.port


def _pick_for(pid: int) -> int:
    request = _native.Request(ports=server_ports(), protocol="tcp+udp", label="portpicker")
    try:
        return request.one_for(pid)
    except Exhausted as error:
        raise NoFreePortFoundError(str(error)) from error
    except ProcessError as error:
        # portpicker accepts any number, but a lease needs a process.
        logging.warning("%s; the port is leased for this process", error)
        return _pick_unused_port_without_server()


def return_port(port: int) -> None:
    """Ends the lease of a port that was picked, or keeps an assigned one to be picked again."""
    if port in _owned_ports:
        _owned_ports.remove(port)
        _free_ports.add(port)
    elif port in _random_ports:
        _random_ports.remove(port)
        lease = _leases.pop(port, None)
        if lease is not None:
            lease.release()
    elif port in _free_ports:
        logging.info("port %s was returned before", port)
    else:
        logging.info("port %s is returned, and was not picked here", port)


def add_reserved_port(port: int) -> None:
    """Adds a port that was acquired elsewhere to those that are picked first.

    It is leased too, unless it is leased or bound already. Then it is added without a lease, as in
    portpicker.
    """
    if port not in _leases:
        try:
            _leases[port] = FreePort.try_new(ports=port, protocol="tcp+udp", label="portpicker")
        except PortlockError as error:
            logging.info("port %s is reserved without a lease: %s", port, error)
    _free_ports.add(port)


def is_port_free(port: int) -> bool:
    """Returns whether a port is free for TCP and UDP, and not leased by another caller.

    A port that was picked here is free until something binds it, as in portpicker.
    """
    return _is_free(port, socket.SOCK_STREAM, "tcp") and _is_free(port, socket.SOCK_DGRAM, "udp")


def bind(port: int, socket_type: int, socket_proto: int) -> int | None:
    """Returns the port if it is free for sockets of this type, or None. 0 means any free port."""
    protocol: _native.Protocol = "udp" if socket_type == socket.SOCK_DGRAM else "tcp"
    if port:
        return port if _is_free(port, socket_type, protocol) else None
    try:
        with FreePort(ports=_native.PortSet(range(*_ephemeral())), protocol=protocol) as chosen:
            return chosen.port
    except Exhausted:
        return None


def _ephemeral() -> tuple[int, int]:
    first, last = _native.ephemeral_port_range()
    return first, last + 1


def _is_free(port: int, socket_type: int, protocol: _native.Protocol) -> bool:
    if port in _leases or port in _owned_ports or port in _free_ports:
        return _can_bind(port, socket_type)
    # Check the lock first: a port that another caller has leased must not be bound.
    request = _native.Request(ports=port, protocol=protocol)
    return request.is_free() and _can_bind(port, socket_type)


def _can_bind(port: int, socket_type: int) -> bool:
    """Returns whether a port of this process can be bound, on every address."""
    is_known = False
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            probe = socket.socket(family, socket_type)
        except OSError:
            continue
        with probe:
            is_known = True
            try:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if os.name == "posix" and socket_type == socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", port))
                if socket_type == socket.SOCK_STREAM:
                    probe.listen(1)
            except OSError:
                return False
    return is_known


def get_port_from_port_server(portserver_address: str | None, pid: int | None = None) -> int | None:
    """Returns a port that a port server assigns to a process, or None, with a note on stderr."""
    if not portserver_address:
        return None
    if pid is None:
        pid = os.getpid()
    try:
        if os.name == "posix":
            port = _ask(portserver_address, pid)
        else:
            port = _native.get_port_from_port_server(portserver_address, pid)
    except OSError as error:
        print(f"port server {portserver_address}: {error}", file=sys.stderr)
        return None
    if port is None:
        print(f"port server {portserver_address}: it has no port", file=sys.stderr)
        return None
    _owned_ports.add(port)
    return port


def _ask(address: str, pid: int) -> int | None:
    """Requests a port by the protocol: a pid in one line, answered by a port in one line."""
    path = "\0" + address[1:] if address.startswith("@") else address
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(_SERVER_TIMEOUT)
        client.connect(path)
        client.sendall(b"%d\n" % pid)
        answer = b""
        while b"\n" not in answer and len(answer) < 1024:
            part = client.recv(1024)
            if not part:
                break
            answer += part
    finally:
        client.close()
    line = answer.split(b"\n")[0].strip()
    port = int(line) if line.isdigit() else 0
    return port if 0 < port < 65536 else None


# The names of portpicker before version 1.1.
Bind = bind
GetPortFromPortServer = get_port_from_port_server
IsPortFree = is_port_free
PickUnusedPort = pick_unused_port

_USAGE = """\
usage: python -m portlock.compat.portpicker [PID]

Prints a port that is leased until the process PID ends. Without PID, that is the process which has
started this one. `portlock pick` has more options.
"""


def main(argv: Sequence[str]) -> None:
    """Runs as a program, as portpicker does."""
    arguments = argv[1:]
    if any(argument in ("-h", "--help") for argument in arguments):
        sys.exit(print(_USAGE) or 1)
    try:
        pid = int(arguments[0]) if arguments else os.getppid()
    except ValueError:
        sys.exit(_USAGE)
    print(pick_unused_port(pid=pid))


if __name__ == "__main__":
    main(sys.argv)
