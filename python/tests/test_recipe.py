"""The five tests of the recipe on which portlock is based."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from threading import Barrier

import pytest
from conftest import LONG

from portlock import FreePort

SPAWN = multiprocessing.get_context("spawn")


def test_one_port(block):
    ports = block(10)
    with FreePort(ports[0], ports[-1]) as port:
        assert port.port in ports
        with socket.socket() as server:
            server.bind(("", port))


def test_the_same_port_again_after_release(block):
    (only,) = block(1)
    port = FreePort(only, only)
    port.release()
    with FreePort(only, only, timeout=0) as again:
        assert int(again) == only


def _lease(only, pipe):
    pipe.send("waiting")
    with FreePort(only, only, timeout=LONG) as port:
        pipe.send((os.getpid(), port.port, time.monotonic()))


def test_a_second_process_waits_for_the_release(block):
    (only,) = block(1)
    port = FreePort(only, only)
    ours, theirs = SPAWN.Pipe()
    second = SPAWN.Process(target=_lease, args=(only, theirs))
    second.start()
    assert ours.poll(LONG)
    assert ours.recv() == "waiting"
    assert not ours.poll(0.5), "it must wait"
    released = time.monotonic()
    port.release()
    assert ours.poll(LONG)
    pid, number, leased = ours.recv()
    assert (pid, number) == (second.pid, only)
    assert leased - released < 1
    second.join(LONG)
    assert second.exitcode == 0


def test_a_hundred_threads_on_exactly_a_hundred_ports(block):
    ports = block(100)
    all_at_once = Barrier(100)

    def lease(_):
        all_at_once.wait()
        return FreePort(ports[0], ports[-1])

    with ThreadPoolExecutor(100) as pool:
        leases = list(pool.map(lease, range(100)))
    assert {port.port for port in leases} == set(ports)
    for port in leases:
        port.release()


def _lease_and_meet(bounds):
    with FreePort(*bounds, timeout=LONG) as port:
        _met.wait(LONG)
        return port.port


def _begin(barrier):
    global _met
    _met = barrier


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_ten_processes_on_ten_ports(block, method):
    ports = block(10)
    context = multiprocessing.get_context(method)
    barrier = context.Barrier(10)
    with ProcessPoolExecutor(10, context, _begin, (barrier,)) as pool:
        found = list(pool.map(_lease_and_meet, [(ports[0], ports[-1])] * 10))
    assert set(found) == set(ports)
