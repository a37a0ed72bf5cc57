"""Leases for asyncio: the event loop runs while a task waits for a port.

>>> async with portlock.aio.lease() as port:
...     server = await asyncio.start_server(handle, *port.addr)
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from . import FreePort, _request

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import SupportsIndex

    from typing_extensions import Unpack

    from ._native import Options, Request

__all__ = ["lease"]


class lease:  # noqa: N801, it is called like a function
    """Leases a port, with the arguments of FreePort.

    `await lease(...)` returns a FreePort. `async with lease(...) as port:` releases it at the end.
    Cancelling the task ends the wait.
    """

    def __init__(self, *bounds: SupportsIndex, **options: Unpack[Options]) -> None:
        self._request = _request(bounds, options)
        self._port: FreePort | None = None

    def __await__(self) -> Generator[object, None, FreePort]:
        return self._acquire().__await__()

    async def __aenter__(self) -> FreePort:
        self._port = await self._acquire()
        return self._port

    async def __aexit__(self, *args: object) -> None:
        if self._port is not None:
            self._port.release()

    async def _acquire(self) -> FreePort:
        loop = asyncio.get_running_loop()
        # A copy: a request that was stopped remains so, and this object can be awaited again.
        request = self._request.copy()
        future: asyncio.Future[FreePort] = loop.create_future()
        # Not in the loop's executor: tasks that wait for a port there could block the work that
        # releases one. A daemon thread, because the interpreter must not wait for it at exit.
        arguments = (request, loop, future)
        threading.Thread(target=_acquire, args=arguments, daemon=True).start()
        try:
            return await future
        except asyncio.CancelledError:
            request.stop()
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()
            raise


def _acquire(
    request: Request,
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[FreePort],
) -> None:
    port: FreePort | None = None
    error: BaseException | None = None
    try:
        port = FreePort(request.one())
    except BaseException as raised:  # Raised where the future is awaited.
        error = raised
    try:
        loop.call_soon_threadsafe(_settle, future, port, error)
    except RuntimeError:  # The loop is closed.
        if port is not None:
            port.release()


def _settle(
    future: asyncio.Future[FreePort], port: FreePort | None, error: BaseException | None
) -> None:
    if future.cancelled():
        if port is not None:
            port.release()
    elif port is not None:
        future.set_result(port)
    elif error is not None:
        future.set_exception(error)
