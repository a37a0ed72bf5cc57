from __future__ import annotations

import asyncio
import threading
import time

import pytest
from conftest import LONG

import portlock
from portlock import FreePort
from portlock.aio import lease


def run(main):
    return asyncio.run(asyncio.wait_for(main, LONG))


def test_await_and_async_with():
    async def main():
        port = await lease(label="aio")
        assert type(port) is FreePort
        async with lease(4000, 6000, timeout=5) as other:
            assert other.port != port.port
            assert other.is_leased
        assert not other.is_leased
        port.release()

    run(main())


def test_the_loop_runs_while_a_task_waits_and_is_woken_by_a_release():
    async def main():
        port = await lease()
        waiting = asyncio.ensure_future(lease(ports=port.port)._acquire())
        ticks = 0
        while ticks < 20:
            await asyncio.sleep(0.01)
            ticks += 1
        assert not waiting.done()
        port.release()
        again = await waiting
        assert again.port == port.port
        again.release()

    run(main())


def test_more_tasks_wait_than_an_executor_has_threads():
    async def main():
        port = await lease()
        tasks = [asyncio.ensure_future(use(port.port)) for _ in range(60)]
        await asyncio.sleep(0.2)
        port.release()
        assert set(await asyncio.gather(*tasks)) == {port.port}

    async def use(number):
        async with lease(ports=number) as port:
            return port.port

    run(main())


def test_cancelling_ends_the_wait():
    async def main():
        with FreePort() as port:
            # Threads of earlier tests may still be ending, so the number of threads proves nothing.
            before = set(threading.enumerate())
            task = asyncio.ensure_future(lease(ports=port.port, timeout=3600)._acquire())
            await asyncio.sleep(0.1)
            (waiting,) = set(threading.enumerate()) - before
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            end = time.monotonic() + LONG
            while waiting.is_alive():
                assert time.monotonic() < end, "the wait continues"
                await asyncio.sleep(0.01)
        # The cancelled wait has left no lease behind.
        FreePort(ports=port.port, timeout=0).release()

    run(main())


def test_errors_are_raised_where_the_lease_is_awaited():
    async def main():
        with pytest.raises(portlock.InvalidPorts):
            await lease(ports=0)
        with FreePort() as port, pytest.raises(portlock.ExhaustedTimeout):
            async with lease(ports=port, timeout=0.05):
                pass

    run(main())


def test_a_lease_whose_wait_was_cancelled_can_be_awaited_again():
    async def main():
        with FreePort() as port:
            again = lease(ports=port.port)
            task = asyncio.ensure_future(again._acquire())
            other = asyncio.ensure_future(again._acquire())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # Longer than the time in which a wait notices that it was stopped.
            await asyncio.sleep(0.3)
            assert not other.done()
        (await other).release()
        (await again).release()

    run(main())
