"""Measures what `run` has built, and prints tables in Markdown."""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROUNDS = 400
SERVER_ROUNDS = 8
CLIENTS = 64
REQUESTS = 9000
PYTHON_CLIENTS = 8
PYTHON_REQUESTS = 800
PORTS = "15000-24999"
# A lock directory on tmpfs, so that no disk is measured.
TMPFS = "/dev/shm"

# Clients of portpicker's own module.
PYTHON_CLIENT = """
import sys, time, portpicker
start = time.perf_counter()
for _ in range(int(sys.argv[1])):
    portpicker.pick_unused_port()
print(int(sys.argv[1]) / (time.perf_counter() - start))
"""


def microseconds(command: list[str], environment: dict[str, str]) -> float:
    """Runs a command, and returns how long that took."""
    null = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
    start = time.perf_counter()
    pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    elapsed = time.perf_counter() - start
    os.close(null)
    if status != 0:
        raise SystemExit(f"{command} failed with wait status {status}")
    return elapsed * 1e6


def start_times(builds: list[tuple[str, str]], work: Path) -> None:
    """Compares the commands by turns, so that what else runs disturbs all of them alike."""
    names = [name for name, _ in builds]
    commands = {}
    for name, portlock in builds:
        commands[name, "start"] = [str(work / f"{name}-start")]
        commands[name, "pick"] = [portlock, "pick", "--pid", "PID"]
        commands[name, "exec"] = [str(work / f"{name}-exec")]
        commands[name, "run"] = [portlock, "run", "--", "/bin/true"]
    times: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
    with tempfile.TemporaryDirectory(dir=TMPFS) as locks:
        environment = {**os.environ, "PORTLOCK_DIR": locks}
        for number in range(ROUNDS):
            # The picked ports belong to this process. Few are leased at the same time.
            if number % 10 == 0:
                holder = subprocess.Popen(["sleep", "1000"])
            for key, command in commands.items():
                command = [str(holder.pid) if word == "PID" else word for word in command]
                times[key].append(microseconds(command, environment))
            if number % 10 == 9:
                holder.kill()
                holder.wait()

    def ratio(key: tuple[str, str], floor: tuple[str, str]) -> str:
        ratios = [a / b for a, b in zip(times[key], times[floor], strict=True)]
        return f"{statistics.median(ratios):.2f}"

    print(f"| command | median of {ROUNDS} | the same linking | dynamic linking |")
    print("|---|---:|---:|---:|")
    for name in names:
        for command, floor in (
            ("start", "start"),
            ("pick", "start"),
            ("exec", "exec"),
            ("run", "exec"),
        ):
            label = {
                "start": "an empty program",
                "pick": "`portlock pick --pid PID`",
                "exec": "a program that executes /bin/true",
                "run": "`portlock run -- /bin/true`",
            }[command]
            key = name, command
            row = [f"{label}, {name}", f"{statistics.median(times[key]):.0f} µs"]
            row += [ratio(key, (name, floor)), ratio(key, ("dynamic", floor))]
            print("|", " | ".join(row), "|")
    print()


class Server:
    """A running port server."""

    def __init__(self, command: list[str]) -> None:
        self.address = f"@portlock-bench-{os.getpid()}-{time.monotonic_ns()}"
        self._locks = tempfile.TemporaryDirectory(dir=TMPFS)
        self._process = subprocess.Popen(
            [word.replace("ADDRESS", self.address) for word in command],
            env={**os.environ, "PORTLOCK_DIR": self._locks.name},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Server:
        time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._locks.cleanup()


def requests_per_second(server: Server, load: str) -> float:
    command = [load, server.address, "--clients", str(CLIENTS), "--requests", str(REQUESTS)]
    # The first time creates the lock files.
    for _ in range(2):
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"(\d+) per second", text)
    if found is None:
        raise SystemExit(f"{load} printed {text!r}")
    return float(found[1])


def python_requests_per_second(server: Server, python: str) -> float:
    command = [python, "-c", PYTHON_CLIENT, str(PYTHON_REQUESTS)]
    environment = {**os.environ, "PORTSERVER_ADDRESS": server.address}
    clients = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(PYTHON_CLIENTS)
    ]
    return sum(float(client.communicate()[0]) for client in clients)


def server_rates(builds: list[tuple[str, str]], load: str, venv: Path) -> None:
    python = str(venv / "bin/python")
    servers = {
        name: [portlock, "serve", "--quiet", "--address", "ADDRESS", "--ports", PORTS]
        for name, portlock in builds
    }
    servers["portserver.py"] = [
        python, str(venv / "bin/portserver.py"), "--portserver_static_pool", PORTS,
        "--portserver_unix_socket_address", "ADDRESS",
    ]  # fmt: skip
    print(
        "| clients | `portlock serve` | its rate | `portserver.py` | median ratio of the rounds |"
    )
    print("|---|---|---:|---:|---:|")
    for label, measure in (
        (
            f"{CLIENTS} connections of one fast client",
            lambda server: requests_per_second(server, load),
        ),
        (
            f"{PYTHON_CLIENTS} processes with portpicker's module",
            lambda server: python_requests_per_second(server, python),
        ),
    ):
        rates: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(SERVER_ROUNDS):
            for name, command in servers.items():
                with Server(command) as server:
                    rates[name].append(measure(server))
        theirs = rates.pop("portserver.py")
        for name, ours in rates.items():
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            medians = [f"{statistics.median(all):,.0f}" for all in (ours, theirs)]
            print("|", " | ".join([label, name, *medians, ratio]), "|")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches/program/run", description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--load", required=True)
    parser.add_argument("builds", nargs="+", help="NAME:PROGRAM")
    options = parser.parse_args()
    builds = [tuple(build.split(":", 1)) for build in options.builds]
    print(f"Load before the run: {os.getloadavg()[0]:.1f}\n")
    start_times(builds, options.work)
    server_rates(builds, options.load, options.work / "venv")


if __name__ == "__main__":
    main()
