"""The helpers of CPython's test suite, as in `test.support.socket_helper`."""

from __future__ import annotations

import importlib
import os
import socket
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING

from portlock import Exhausted, FreePort, server_ports

if TYPE_CHECKING:
    from portlock._native import Protocol

__all__ = ["HOST", "HOSTv4", "HOSTv6", "bind_port", "find_unused_port"]

HOST = "localhost"
HOSTv4 = "127.0.0.1"
HOSTv6 = "::1"

# Number of ports that find_unused_port() keeps leased. Callers do not return them, so the oldest
# lease ends when there are more: by then its number has been used, or never will be.
_MAX_KEPT = 64


class _Kept:
    """The ports that this process has found and keeps."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.leases: deque[FreePort] = deque()


_kept = _Kept()


def _forget() -> None:
    """Forgets the parent's ports, and its lock, which a thread may have held at the fork."""
    global _kept
    _kept = _Kept()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def find_unused_port(family: int = socket.AF_INET, socktype: int = socket.SOCK_STREAM) -> int:
    """Returns a port that is free on every address, leased until this process has found many more.

    CPython's own function returns a number that any other program can get at the same moment.
    """
    protocol: Protocol = "udp" if socktype == socket.SOCK_DGRAM else "tcp"
    kept = _kept
    with kept.lock:
        ports = server_ports()
        while True:
            try:
                lease = FreePort(
                    ports=ports,
                    protocol=protocol,
                    timeout=0 if kept.leases else 30,
                    label="find_unused_port",
                )
                break
            except Exhausted:
                if not kept.leases:
                    raise
                kept.leases.popleft().release()
        kept.leases.append(lease)
        if len(kept.leases) > _MAX_KEPT:
            kept.leases.popleft().release()
        return lease.port


def bind_port(sock: socket.socket, host: str = HOST) -> int:
    """Binds a socket to a port of `host` that the system chooses, and returns the port.

    A TCP socket that could share its port with another one is refused, for IPv6 too.
    """
    if sock.type == socket.SOCK_STREAM:
        for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
            number = getattr(socket, option, None)
            if number is not None and _is_set(sock, number):
                raise _test_failed(
                    f"tests should never set {option} on TCP sockets: the port could be shared"
                )
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        if exclusive is not None:
            sock.setsockopt(socket.SOL_SOCKET, exclusive, 1)
    sock.bind((host, 0))
    port: int = sock.getsockname()[1]
    return port


def _is_set(sock: socket.socket, option: int) -> bool:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, option) != 0
    except OSError:
        # A kernel may lack an option that the headers have.
        return False


def _test_failed(message: str) -> Exception:
    """Returns the exception that CPython's own helper raises, where its tests are installed."""
    try:
        support = importlib.import_module("test.support")
    except ImportError:
        return AssertionError(message)
    failed: type[Exception] = getattr(support, "TestFailed", AssertionError)
    return failed(message)
