"""Fixtures for tests that start servers, also with pytest-xdist (-n 4).

They need only the program `portlock` in PATH.
"""

import os
import subprocess
import sys

import pytest


def portlock(*args):
    run = subprocess.run(["portlock", *args], stdout=subprocess.PIPE, text=True, check=True)
    return run.stdout


@pytest.fixture
def free_port(request):
    """A port that no other caller gets until the test has ended.

    The lease belongs to this process, a worker of xdist or pytest itself. If it is
    killed, the lease ends with it.

    --reuse-address: connections that a server closes stay in TIME_WAIT on its port for
    a minute. They do not affect a server that sets SO_REUSEADDR, as those of the
    standard library do.
    """
    pid, label = str(os.getpid()), request.node.nodeid
    port = int(portlock("pick", "--pid", pid, "--label", label, "--reuse-address"))
    yield port
    portlock("release", str(port))


@pytest.fixture
def web_server(free_port, tmp_path):
    """A web server for the files in tmp_path: its address."""
    command = [sys.executable, "-m", "http.server", str(free_port)]
    command += ["--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            # Fails if another process's server answers, because this one could not bind the port.
            portlock("wait", "--timeout", "20", "--pid", str(server.pid), str(free_port))
            yield f"http://127.0.0.1:{free_port}"
        finally:
            # Popen waits for its end. Only then is the port released.
            server.kill()
