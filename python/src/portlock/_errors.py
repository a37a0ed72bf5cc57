"""The exceptions, and which of them is raised for each error of the library."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Counts(NamedTuple):
    """How many ports could not be leased, by reason."""

    leased: int
    """Leased by another caller."""
    reserved: int
    """Reserved for a name, and not leased."""
    bound: int
    """Bound by programs that have no lease."""
    lingering: int
    """In TIME_WAIT, or bound with SO_REUSEADDR and not listening."""
    not_permitted: int
    """Not permitted to this process."""
    not_enough: int
    """Free, but not enough of them."""


class PortlockError(OSError):
    """A port could not be leased, probed or released. The base class of this package's errors.

    `kind` names the case, such as "exhausted". If a system call failed, `errno` is its error
    number. `filename` is the path that the message is about.
    """

    kind: str = "other"
    counts: Counts | None = None
    holders: Mapping[int, str | None] = MappingProxyType({})
    """Some of the leased ports, and the holder of each."""

    def __str__(self) -> str:
        # The message has the cause. OSError would prepend the number.
        return str(
            self.strerror if self.strerror is not None else self.args[0] if self.args else ""
        )


class InvalidPorts(PortlockError, ValueError):
    """There is no port to choose from, or too few of them."""

    kind = "invalid_ports"


class InvalidName(PortlockError, ValueError):
    """The name of a reservation, or its root directory, cannot be used."""

    kind = "invalid_name"


class Exhausted(PortlockError):
    """Every port is leased, in use or not permitted. `counts` has the number of each."""

    kind = "exhausted"


class ExhaustedTimeout(Exhausted, TimeoutError):
    """Every port was leased or in use until the timeout."""


class PermissionDenied(PortlockError, PermissionError):
    """This process may not bind any of the ports."""

    kind = "permission_denied"


class LockDirError(PortlockError):
    """The lock directory is missing, cannot be created, or cannot be trusted."""

    kind = "lock_dir"


class LockError(PortlockError):
    """A lock file could not be opened, created, locked, written or unlocked."""

    kind = "lock"


class ProbeError(PortlockError):
    """A socket could not be created or bound, and not because its port is in use."""

    kind = "probe"


class PortServerError(PortlockError):
    """A port server cannot be reached, does not answer, or refuses."""

    kind = "port_server"


class ServerTimeout(PortlockError, TimeoutError):
    """No server accepted connections in time."""

    kind = "timeout"


class OtherServer(PortlockError):
    """The server that answers belongs to another process."""

    kind = "other_server"


class Stopped(PortlockError):
    """The wait was stopped."""

    kind = "stopped"


class ProcessError(PortlockError, ProcessLookupError):
    """The process does not exist, or the system fails to show it."""

    kind = "process"


class Unsupported(PortlockError):
    """Not possible on this system, or not in this combination."""

    kind = "unsupported"


_CLASSES: dict[str, type[PortlockError]] = {
    found.kind: found
    for found in (
        InvalidPorts,
        InvalidName,
        Exhausted,
        PermissionDenied,
        LockDirError,
        LockError,
        ProbeError,
        PortServerError,
        ServerTimeout,
        OtherServer,
        Stopped,
        ProcessError,
        Unsupported,
    )
}


def create(
    kind: str,
    message: str,
    errno: int | None = None,
    filename: os.PathLike[str] | None = None,
    counts: tuple[int, int, int, int, int, int] | None = None,
    holders: list[tuple[int, str | None]] | None = None,
    waited: bool = False,
) -> PortlockError:
    """Returns the exception for an error of the library."""
    found = _CLASSES.get(kind, PortlockError)
    if waited and found is Exhausted:
        found = ExhaustedTimeout
    error = found(message) if errno is None else found(errno, message)
    error.kind = kind
    if filename is not None:
        error.filename = os.fspath(filename)
    if counts is not None:
        error.counts = Counts(*counts)
    if holders:
        error.holders = dict(holders)
    return error
