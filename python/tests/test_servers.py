"""200 tests in 8 workers, each with a real server; two suites at the same time, in 60 ports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import LONG

pytest.importorskip("xdist")

SUITE = '''
import asyncio, http.server, os, socket, subprocess, sys, threading, time, uuid
from pathlib import Path
import pytest

HERE = Path(__file__).parent

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["TOKEN"].encode())

    def log_message(self, *_):
        pass

UVICORN = """
import os, sys, uvicorn

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": os.environ["TOKEN"].encode()})

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="off")
"""

HTTP = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["TOKEN"].encode())

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

def exchange(port, kind, token):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        if kind == "redis":
            client.sendall(b"CONFIG GET dbfilename\\r\\n")
            time.sleep(0.05)
            return token in client.recv(4096).decode()
        client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        answer = b""
        while part := client.recv(4096):
            answer += part
        return token in answer.decode()

def start(kind, port, token):
    commands = {
        "http": [sys.executable, "-c", HTTP, str(port)],
        "uvicorn": [sys.executable, "-c", UVICORN, str(port)],
        "redis": ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "",
                  "--dbfilename", token],
    }
    return subprocess.Popen(
        commands[kind], env={**os.environ, "TOKEN": token},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )

KINDS = os.environ["KINDS"].split()

@pytest.mark.parametrize("number", range(int(os.environ["TESTS"])))
def test_server(FIXTURE, number):
    kind, token, port = KINDS[number % len(KINDS)], uuid.uuid4().hex, FIXTURE
    with start(kind, port, token) as server:
        try:
            end = time.monotonic() + 60
            while True:
                assert server.poll() is None, "the server has ended: its port was taken"
                try:
                    assert exchange(port, kind, token), "another server answers"
                    break
                except (ConnectionError, TimeoutError):
                    assert time.monotonic() < end
                    time.sleep(0.02)
        finally:
            server.kill()
'''


def run_suites(folder, tests, *, suites=2, fixture="unused_tcp_port", ports=None, workers=8):
    """Runs suites at the same time, and returns how many tests passed and failed in each."""
    folder.mkdir()
    (folder / "test_suite.py").write_text(SUITE.replace("FIXTURE", fixture))
    override = "portlock_override = true\n" if ports else ""
    (folder / "pytest.ini").write_text(f"[pytest]\n{override}")
    kinds = ["http", "uvicorn", "redis"]
    if shutil.which("redis-server") is None:
        kinds.remove("redis")
    environment = {**os.environ, "TESTS": str(tests), "KINDS": " ".join(kinds)}
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "-p", "no:cacheprovider"]
    if ports:
        command.append(f"--portlock-ports={ports[0]}-{ports[-1]}")
    processes = [
        subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(suites)
    ]
    counts = []
    for process in processes:
        output, _ = process.communicate(timeout=20 * LONG)
        number = {
            word: int(found) for found, word in re.findall(r"(\d+) (passed|failed|error)", output)
        }
        counts.append((number.get("passed", 0), number.get("failed", 0) + number.get("error", 0)))
        if counts[-1][1]:
            print(output)
    return counts


def test_two_suites_at_once_in_few_ports(tmp_path, block):
    pytest.importorskip("pytest_asyncio")
    pytest.importorskip("uvicorn")
    tests = int(os.environ.get("PORTLEASE_SERVER_TESTS", "24"))
    assert run_suites(tmp_path / "suite", tests, ports=block(60)) == [(tests, 0)] * 2
