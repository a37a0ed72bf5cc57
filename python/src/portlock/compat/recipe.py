"""The recipe with a lock file for each port, as one function."""

from __future__ import annotations

from portlock import FreePort

__all__ = ["FreePort", "get_free_port"]


def get_free_port(start: int = 4000, stop: int = 6000) -> FreePort:
    """Returns a leased port from `start` to `stop`, both included."""
    return FreePort(start, stop)
