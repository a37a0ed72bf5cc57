"""A copy of a lease in a forked child does not end the lease, and no fork hangs."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

COPIES = """
import gc, os
import portlock
from portlock import FreePort

def is_leased(number):
    # In another process, because this one knows its own leases.
    pid = os.fork()
    if pid == 0:
        try:
            FreePort(ports=number, timeout=0).release()
        except portlock.Exhausted:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1

def in_child(end):
    # Calls end() with the copy in a child, which must exit with 0.
    port = FreePort()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert not port.is_leased and "forked copy" in repr(port)
            end(port)
            del port
            gc.collect()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert port.is_leased and is_leased(port.port)
    port.release()
    assert not is_leased(port.port)

def leave(port):
    with port:
        pass

def release(port):
    try:
        port.release()
    except portlock.LockError as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError("the copy is not the lease")

for end in (lambda port: None, leave, release):
    in_child(end)
"""

STORM = """
import os, sys, threading
import portlock
from portlock import FreePort

first, forks = int(sys.argv[1]), int(sys.argv[2])
ports = range(first, first + 40)
stop = threading.Event()

def lease():
    while not stop.is_set():
        with FreePort(ports=ports):
            pass

threads = [threading.Thread(target=lease) for _ in range(8)]
for thread in threads:
    thread.start()
hung = failed = 0
for _ in range(forks):
    pid = os.fork()
    if pid == 0:
        import signal
        signal.alarm(30)
        status = 1
        try:
            with FreePort(ports=ports):
                pass
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    hung += os.WIFSIGNALED(status)
    failed += os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
stop.set()
for thread in threads:
    thread.join()
print(forks, "forks,", hung, "hung,", failed, "failed")
"""

WORKERS = """
import multiprocessing, os, sys
from portlock import FreePort

def work(number):
    with FreePort() as port:
        return port.port != number

def main():
    with FreePort() as port:
        for method in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context(method)
            with context.Pool(4) as pool:
                assert all(pool.map(work, [int(port)] * 40)), method
        assert port.is_leased
    print("done")

if __name__ == "__main__":
    main()
"""


def test_a_copy_ends_nothing(script):
    code = (
        COPIES
        if hasattr(os, "waitstatus_to_exitcode")
        else COPIES.replace("os.waitstatus_to_exitcode", "os.WEXITSTATUS")
    )
    script(code)


def test_no_fork_hangs_while_threads_lease(block, script):
    forks = 100
    (first, *_) = block(40)
    # Python 3.12 warns of forks beside threads, which this test needs.
    code = "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n" + STORM
    assert script(code, first, forks) == f"{forks} forks, 0 hung, 0 failed\n"


def test_workers_of_each_start_method_lease(script):
    assert script(WORKERS) == "done\n"


def test_a_lease_dies_with_its_process(block, script):
    (only,) = block(1)
    script(
        "import os, sys; from portlock import FreePort\np = FreePort(ports=int(sys.argv[1]))\n"
        "os._exit(0)",
        only,
    )
    script(
        "import sys; from portlock import FreePort\n"
        "FreePort(ports=int(sys.argv[1]), timeout=0).release()",
        only,
    )
