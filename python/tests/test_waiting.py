"""A wait does not hold the interpreter lock, runs signal handlers, and ends with Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of Unix")

# Another thread sends the signal once this one waits. Both read the clock of the same process.
INTERRUPTED = """
import os, signal, sys, threading, time
import portlock
from portlock import FreePort

waits = {
    "lease": lambda port: FreePort(ports=port, timeout=60),
    "many": lambda port: FreePort.many(2, ports=[port, 1024], timeout=60),
    "listening": lambda port: port.wait_until_listening(60),
    "server": lambda port: port.wait_for_server(os.getpid(), 60),
}
sent = []

def send():
    # The wait has usually begun by then. If it has not, the interrupt is easier to handle.
    time.sleep(0.25)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

with FreePort() as port:
    thread = threading.Thread(target=send)
    thread.start()
    try:
        waits[sys.argv[1]](port)
    except KeyboardInterrupt:
        print(time.monotonic() - sent[0])
    thread.join()
"""

HANDLED = """
import os, signal, threading, time
from portlock import FreePort

handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(time.monotonic()))
port = FreePort()

def work():
    # If the waiting thread held the interpreter lock, this one would not run.
    time.sleep(0.25)
    os.kill(os.getpid(), signal.SIGUSR1)
    while not handled:
        time.sleep(0.01)
    port.release()

thread = threading.Thread(target=work)
thread.start()
with FreePort(ports=port.port, timeout=60) as again:
    print(again.port == port.port, len(handled))
thread.join()
"""

RAISED = """
import os, signal, threading
from portlock import FreePort

class Alarm(Exception):
    pass

def handler(*_):
    raise Alarm

signal.signal(signal.SIGALRM, handler)
with FreePort() as port:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        FreePort(ports=port, timeout=60)
    except Alarm:
        print("raised")
"""


@pytest.mark.parametrize("wait", ["lease", "many", "listening", "server"])
def test_ctrl_c_ends_a_wait_within_a_fifth_of_a_second(script, wait):
    # A bound for a busy machine. benches/ measures the actual time.
    assert float(script(INTERRUPTED, wait)) < 1


def test_handlers_run_and_the_wait_continues(script):
    assert script(HANDLED) == "True 1\n"


def test_what_a_handler_raises_ends_the_wait(script):
    assert script(RAISED) == "raised\n"


ENDED = """
import threading, time
from portlock import FreePort

port = FreePort()
number, descriptor = port.port, port.detach_fd()

def wait():
    begun.set()
    FreePort(ports=number, timeout=600)

for _ in range(4):
    begun = threading.Event()
    threading.Thread(target=wait, daemon=True).start()
    begun.wait()
time.sleep(0.2)
print("the end")
"""


def test_the_interpreter_ends_while_threads_wait(script):
    # If it waited for them, that would take longer than the bound of a script.
    assert script(ENDED) == "the end\n"


def test_ctrl_c_in_a_terminal_ends_the_program(block, script):
    (only,) = block(1)
    code = (
        "import sys\nfrom portlock import FreePort\nport = FreePort(ports=int(sys.argv[1]))\n"
        "import subprocess, signal, time\n"
        "child = subprocess.Popen([sys.executable, '-c', "
        "'import sys; print(flush=True); from portlock import FreePort; "
        "FreePort(ports=int(sys.argv[1]))', sys.argv[1]], "
        "stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "child.stdout.readline()\ntime.sleep(0.3)\nchild.send_signal(signal.SIGINT)\n"
        "_, text = child.communicate(timeout=20)\nport.release()\n"
        "print(child.returncode, b'KeyboardInterrupt' in text)\n"
    )
    assert script(code, only) == f"{-signal.SIGINT} True\n"
    assert sys.platform != "win32"
