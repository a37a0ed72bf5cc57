"""Free ports as leases.

>>> import portlock
>>> with portlock.FreePort() as port:
...     print(f"serve on {port}")
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _native
from ._errors import (
    Counts,
    Exhausted,
    ExhaustedTimeout,
    InvalidPorts,
    LockDirError,
    LockError,
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

__all__ = [
    "BindFreePort",
    "CleanCounts",
    "Counts",
    "Entry",
    "Exhausted",
    "ExhaustedTimeout",
    "FreePort",
    "InvalidPorts",
    "LockDirError",
    "LockError",
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
