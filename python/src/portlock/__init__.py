"""Free ports as leases.

>>> import portlock
>>> with portlock.FreePort() as port:
...     print(f"serve on {port}")
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _native
from ._errors import (
    Counts,
    Exhausted,
    ExhaustedTimeout,
    InvalidName,
    InvalidPorts,
    LockDirError,
    LockError,
    OtherServer,
    PermissionDenied,
    PortlockError,
    PortServerError,
    ProbeError,
    ProcessError,
    ServerTimeout,
    Stopped,
    Unsupported,
)
from ._native import BindFreePort, PortSet, server_ports

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from pathlib import Path
    from typing import SupportsIndex, TypeVar

    from typing_extensions import Unpack

    from ._native import Options

    _Port = TypeVar("_Port", bound="FreePort")

__all__ = [
    "BindFreePort",
    "CleanCounts",
    "Counts",
    "Entry",
    "Exhausted",
    "ExhaustedTimeout",
    "FreePort",
    "InvalidName",
    "InvalidPorts",
    "LockDirError",
    "LockError",
    "OtherServer",
    "PermissionDenied",
    "PortServerError",
    "PortSet",
    "PortlockError",
    "ProbeError",
    "ProcessError",
    "ServerTimeout",
    "Stopped",
    "Unsupported",
    "clean",
    "entries",
    "ephemeral_port_range",
    "lock_dir",
    "server_ports",
]

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_native.forked)


def _request(bounds: tuple[SupportsIndex, ...], options: Options) -> _native.Request:
    # A type checker cannot see that no option is also passed by position.
    return _native.Request(*bounds, **options)  # pyright: ignore[reportCallIssue]


class FreePort(_native.Lease):
    """A leased port: no other caller, in any thread or process, gets it until the lease ends.

    FreePort(start=4000, stop=6000, *, ports=None, hosts=None, protocol="tcp", timeout=30.0,
    label=None, name=None, root=None, prefer=None, reuse_address=None, hold_socket=False,
    lock_dir=None)

    The port is one from `start` to `stop`, both included, or one of `ports`: a text such as
    "4000-4999,!4045,7000", a PortSet, a range, or an iterable of integers. While all are leased or
    in use, the call waits, `timeout` seconds at most; 0 means to try each port once.

    The lease ends with release(), with the end of a `with` block, when this object is collected, or
    when this process ends, however it ends. Keep the object as long as the port is in use.

    hosts: addresses on which the port must be free; by default, every IPv4 and IPv6 address.
    protocol: "tcp", "udp" or "tcp+udp".
    label: what the port is leased for, as text for people.
    name, root: lease the port that is reserved for this name in the directory `root` (by default
        that of the enclosing git worktree), and reserve one first if none is. Without ports, one of
        server_ports() is reserved.
    prefer: text that determines where the search starts: the same text gets the same port while it
        is free.
    reuse_address: whether ports in TIME_WAIT count as free; by default, only if no other port is
        free.
    hold_socket: keep the port bound as well (Linux).
    lock_dir: the lock directory; only callers with the same one exclude each other.
    """

    __slots__ = ("__weakref__",)

    @classmethod
    def try_new(cls: type[_Port], *bounds: SupportsIndex, **options: Unpack[Options]) -> _Port:
        """Leases a port if one is free now, as FreePort() with timeout=0 does."""
        return cls.__new__(cls, _request(bounds, options).try_one())

    @classmethod
    def listen(
        cls: type[_Port], *bounds: SupportsIndex, **options: Unpack[Options]
    ) -> tuple[_Port, socket.socket]:
        """Leases a port and returns it with a socket that listens on it.

        No other program can take the port in between: the socket that found it free becomes the
        listener.
        """
        # Imported here because it takes longer than the rest of this module.
        import socket

        lease, descriptor = _request(bounds, options).listen()
        try:
            listener = socket.socket(fileno=descriptor)
        except BaseException:
            socket.close(descriptor)
            raise
        return cls.__new__(cls, lease), listener

    @classmethod
    def many(
        cls: type[_Port], n: SupportsIndex, *bounds: SupportsIndex, **options: Unpack[Options]
    ) -> list[_Port]:
        """Leases `n` ports, or none."""
        return [cls.__new__(cls, lease) for lease in _request(bounds, options).many(n)]

    @classmethod
    def block(
        cls: type[_Port], n: SupportsIndex, *bounds: SupportsIndex, **options: Unpack[Options]
    ) -> list[_Port]:
        """Leases `n` ports that follow each other, in ascending order, or none."""
        return [cls.__new__(cls, lease) for lease in _request(bounds, options).block(n)]

    @classmethod
    def offsets(
        cls: type[_Port],
        offsets: Iterable[SupportsIndex],
        *bounds: SupportsIndex,
        **options: Unpack[Options],
    ) -> list[_Port]:
        """Leases the ports at all offsets from one of the ports, in that order, or none."""
        return [cls.__new__(cls, lease) for lease in _request(bounds, options).offsets(offsets)]

    # Bound as a default, because modules are cleared first when the interpreter ends.
    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self.is_leased:
            try:
                _warn(f"unreleased {self!r}", ResourceWarning, source=self)
            finally:
                # A recorded warning keeps this object alive.
                super().release()


class Entry(NamedTuple):
    """The lock file of a port, and its contents."""

    port: int
    state: str
    """Leased: "held" by a process, "inherited" from one that has ended, or "delegated" to one. Not
    leased: "stale". "unknown" if this user cannot determine it."""
    pid: int | None
    """The holder's pid, in its own pid namespace."""
    program: str | None
    label: str | None
    since: float | None
    """When the lease began, in seconds since 1970."""
    holder: str | None
    """The current or last holder, as text for people."""

    @property
    def is_leased(self) -> bool:
        """Whether the port is known to be leased."""
        return self.state not in ("stale", "unknown")


class CleanCounts(NamedTuple):
    """What clean() did."""

    removed: int
    kept: int


def ephemeral_port_range() -> range:
    """Returns the ephemeral range: the ports that the system assigns to clients."""
    first, last = _native.ephemeral_port_range()
    return range(first, last + 1)


def entries(lock_dir: str | os.PathLike[str] | None = None) -> list[Entry]:
    """Returns every lock file of the lock directory, by port."""
    return [Entry(*fields) for fields in _native.entries(lock_dir)]


def clean(lock_dir: str | os.PathLike[str] | None = None) -> CleanCounts:
    """Removes the lock files of ports that are not leased. It does no harm to leave them."""
    return CleanCounts(*_native.clean(lock_dir))


def lock_dir(lock_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the lock directory that is in use: `lock_dir`, PORTLOCK_DIR or the default one."""
    from pathlib import Path

    return Path(_native.lock_dir(lock_dir))
