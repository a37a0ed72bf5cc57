"""The test suites of portpicker, PySys and CPython, run with the modules of this package.

PORTLEASE_THIRD_PARTY names a folder with the source distribution of portpicker 1.6.0, unpacked;
PySys 2.2 is installed beside pytest. This repository contains no part of them. Missing suites are
skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import LONG

SUITES = Path(os.environ.get("PORTLEASE_THIRD_PARTY", "/nonexistent"))
PROGRAM = shutil.which("portlock", path=sysconfig.get_path("scripts"))

posix = pytest.mark.skipif(os.name != "posix", reason="these suites use Unix sockets and shells")

# This package has neither portpicker's private socket functions nor its help text.
PORTPICKER = """
import sys, unittest
import portlock.compat.portpicker as portpicker
sys.modules["portpicker"] = portpicker
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
unittest.main(module=None, argv=["portpicker", *sys.argv[2:]])
"""

# Why a test cannot pass, by its name.
CANNOT = {
    "test_command_line_help": "it compares portpicker's own help text",
    "test_command_line_help_text_dedented": "the same",
    "test_command_line_interface_no_portserver_bind_timeout": "it expects a child that keeps the "
    "port bound for some seconds; here the port is leased for the caller",
}


def run_portpicker(module, tmp_path, **environment):
    cli = tmp_path / "portpicker"
    cli.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m portlock.compat.portpicker "$@"\n')
    cli.chmod(0o755)
    runner = tmp_path / "runner.py"
    runner.write_text(PORTPICKER)
    outcome = subprocess.run(
        [sys.executable, str(runner), str(SUITES / "src"), "-v", module],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=3 * LONG,
        env={**os.environ, "TEST_PORTPICKER_CLI": str(cli), **environment},
    )
    failed = set(re.findall(r"^(?:FAIL|ERROR): (\w+)", outcome.stderr, re.MULTILINE))
    (total,) = re.findall(r"^Ran (\d+) tests", outcome.stderr, re.MULTILINE)
    print(f"{module}: {total} tests, {len(failed)} failed {sorted(failed)}")
    return int(total), failed, outcome.stderr


@posix
@pytest.mark.skipif(not SUITES.is_dir(), reason="PORTLEASE_THIRD_PARTY is not set")
@pytest.mark.parametrize("server", [False, True], ids=["alone", "portlock serve"])
@pytest.mark.parametrize("module", ["portpicker_test", "portserver_test"])
def test_portpicker(module, server, tmp_path):
    # portserver_test starts portserver.py, which needs psutil.
    if module == "portserver_test":
        pytest.importorskip("psutil")
    environment = {}
    process = None
    if server:
        environment["PORTSERVER_ADDRESS"] = str(tmp_path / "socket")
        process = subprocess.Popen(
            [PROGRAM, "serve", "--address", environment["PORTSERVER_ADDRESS"]]
        )
        while not (tmp_path / "socket").exists():
            assert process.poll() is None
    try:
        # Its own tests allow a server two seconds, which is too short on a busy machine.
        for _ in range(3):
            total, failed, text = run_portpicker(module, tmp_path, **environment)
            if failed <= CANNOT.keys():
                break
    finally:
        if process is not None:
            process.terminate()
            process.wait(LONG)
    assert total > 10
    assert failed <= CANNOT.keys(), text
    if process is None and module == "portpicker_test" and shutil.which("netstat"):
        assert failed == CANNOT.keys()


PYSYS_TEST = """
__pysys_title__ = r"a server on the port that the test was given"

import sys
import threading
import time

import pysys.basetest


class PySysTest(pysys.basetest.BaseTest):
    def execute(self):
        port = self.getNextAvailableTCPPort(hosts=["127.0.0.1"])
        time.sleep(0.05)
        server = self.startPython(
            [self.input + "/serve.py", str(port), self.descriptor.id],
            stdouterr="server", background=True,
        )
        self.waitForGrep("server.out", "ready", timeout=60)
        self.startPython(
            [self.input + "/fetch.py", str(port), self.descriptor.id], stdouterr="client"
        )

    def validate(self):
        self.assertGrep("client.out", "^mine")
"""

SERVE = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[2].encode())

server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"""

FETCH = """
import sys, urllib.request

with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/", timeout=60) as answer:
    print("mine" if answer.read().decode() == sys.argv[2] else "a stranger's")
"""

PYSYS = """
import sys
import portlock.compat.pysys
portlock.compat.pysys.install()
from pysys.__main__ import main
sys.argv[0] = "pysys.py"
main()
"""


@posix
def test_pysys_with_two_runs_at_once(tmp_path, block):
    pytest.importorskip("pysys")
    ports = block(30)
    project = tmp_path / "project"
    for number in range(20):
        test = project / f"Server_{number:02}"
        (test / "Input").mkdir(parents=True)
        (test / "pysystest.py").write_text(PYSYS_TEST)
        (test / "Input" / "serve.py").write_text(SERVE)
        (test / "Input" / "fetch.py").write_text(FETCH)
    (project / "pysysproject.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<pysysproject>'
        "<requires-pysys>2.0</requires-pysys></pysysproject>\n"
    )
    runner = tmp_path / "runner.py"
    runner.write_text(PYSYS)
    environment = {**os.environ, "PYSYS_PORTS": f"{ports[0]}-{ports[-1]}"}
    runs = [
        subprocess.Popen(
            [sys.executable, str(runner), "run", "--threads", "8", "-o", f"run{number}"],
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    for run in runs:
        output, _ = run.communicate(timeout=3 * LONG)
        assert run.returncode == 0, output
        assert "THERE WERE NO FAILURES" in output
        assert len(re.findall(r"Test final outcome: +PASSED", output)) == 20


CPYTHON = """
import sys, unittest
import test.support.socket_helper as theirs
from portlock.compat import socket_helper as ours
for name in ours.__all__:
    setattr(theirs, name, getattr(ours, name))
unittest.main(module=None, argv=["cpython", *sys.argv[1:]])
"""

# The tests that use find_unused_port or bind_port, and need only the loopback interface.
CPYTHON_TESTS = [
    "test.test_support.TestSupport.test_find_unused_port",
    "test.test_support.TestSupport.test_bind_port",
    "test.test_socketserver",
    "test.test_telnetlib",
    "test.test_ftplib",
    "test.test_smtplib",
    "test.test_poplib",
    "test.test_imaplib",
    "test.test_timeout.TCPTimeoutTestCase",
    "test.test_asyncore",
    "test.test_httplib.SourceAddressTest",
]


@posix
def test_cpython(tmp_path):
    pytest.importorskip("test.test_support")
    from importlib.util import find_spec

    names = [name for name in CPYTHON_TESTS if find_spec(".".join(name.split(".")[:2]))]
    runner = tmp_path / "runner.py"
    runner.write_text(CPYTHON)
    outcome = subprocess.run(
        [sys.executable, "-W", "ignore", str(runner), *names],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=3 * LONG,
    )
    print(outcome.stderr.splitlines()[-3:])
    assert outcome.returncode == 0, outcome.stderr
