"""Runs the suites that `run` has prepared, and prints a table in Markdown."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The kernel chooses from these. For binding port 0, as the suites' pickers do, it tries the 250 odd
# ones first, and for clients the even ones: inet_csk_find_open_port, __inet_hash_connect.
EPHEMERAL = "24000-24499"
# `random` and `portlock` choose from these: outside the ephemeral range, as portlock recommends.
PORTS = "21000-21249"
# What Linux uses as its ephemeral range unless told otherwise.
DEFAULT_EPHEMERAL = "32768-60999"
WAYS = ["own", "random", "portlock"]
IN_USE = re.compile("address already in use|port .* is in use", re.IGNORECASE)


@dataclass(frozen=True)
class Suite:
    name: str
    # Which of its tests: those that start a server on a port that they have picked before.
    tests: tuple[str, ...]
    # Whether the system keeps closed connections in TIME_WAIT. If it did, 250 ports would soon
    # run out, and most failures would not be of ports that were picked twice.
    time_wait: bool = False


SUITES = [
    # One implementation of HTTP and one of WebSocket, so that a round takes minutes.
    Suite(
        "uvicorn",
        ("tests", "--ignore=tests/benchmarks", "-k", "not h11 and not zttp and not wsproto"),
    ),
    Suite("jupyter_client", ("tests/test_client.py", "-k", "TestAsyncKernelClient")),
    # The reloader's test with watchdog does not end here, alone and with its own picker either.
    # Its picker's reservation is TIME_WAIT, and its tests use fewer ports than there are.
    Suite(
        "werkzeug",
        ("tests/test_serving.py", "-k", "not (reloader_sys_path and watchdog)"),
        time_wait=True,
    ),
]

# Namespaces for the network and for processes: no other program binds ports there, nothing is in
# TIME_WAIT at the beginning, and no process is left at the end.
NAMESPACES = [
    "unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh",
    "-c",
    """
    set -eu
    ephemeral=$1 copies=$2 out=$3
    shift 3
    ip link set lo up
    echo "$ephemeral" > /proc/sys/net/ipv4/ip_local_port_range
    if [ "$TIME_WAIT" = False ]; then
        echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets
    fi
    for copy in $(seq "$copies"); do
        (
            export TMPDIR="$TEMP/$copy"
            mkdir "$TMPDIR"
            cd "../../copy-$copy/$SUITE"
            SUITES_RECORD="$out/$copy.jsonl" exec "$@" > "$out/$copy.log" 2>&1
        ) &
    done
    wait
    """,
    "sh",
]  # fmt: skip


@dataclass(frozen=True)
class Counts:
    tests: int
    # Failed tests whose port another one had at that time, or whose server found it in use.
    taken: int
    # All other failed tests.
    other: int


def run(suite: Suite, way: str, copies: int, ephemeral: str, target: Path, out: Path) -> Counts:
    """Runs a suite, and returns how many of its tests failed."""
    out.mkdir(parents=True)
    command = [
        *NAMESPACES, ephemeral.replace("-", " "), str(copies), str(out),
        "timeout", "--kill-after=5", "240", sys.executable, "-m", "pytest",
        "-p", "picker", "-p", "no:cacheprovider", "--timeout=60", "--timeout-method=signal",
        "--color=no", *suite.tests,
    ]  # fmt: skip
    # Short, for the paths of Unix sockets.
    with tempfile.TemporaryDirectory(prefix="s") as temp:
        locks = Path(temp, "locks")
        locks.mkdir(mode=0o700)
        environment = {
            **os.environ,
            "SUITE": suite.name,
            "SUITES_PICKER": way,
            "SUITES_PORTS": PORTS,
            "TIME_WAIT": str(suite.time_wait),
            "PORTLOCK_DIR": str(locks),
            "TEMP": temp,
            "PYTHONPATH": str(HERE),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        subprocess.run(command, cwd=target / "copy-1" / suite.name, env=environment, check=True)
    return count([out / f"{copy}.jsonl" for copy in range(1, copies + 1)])


def count(records: list[Path]) -> Counts:
    """Reads what picker.py has written for each copy."""
    tests = [
        json.loads(line)
        for record in records
        if record.exists()
        for line in record.read_text().splitlines()
    ]
    # By port: who had it, from when until when.
    uses: dict[int, list[tuple[float, float, object]]] = {}
    for test in tests:
        for start, port in test["picked"]:
            uses.setdefault(port, []).append((start, test["end"], test))
    taken = other = 0
    for test in tests:
        if not test["failures"]:
            continue
        shared = any(
            user is not test and start < test["end"] and since < end
            for since, port in test["picked"]
            for start, end, user in uses[port]
        )
        if shared or IN_USE.search("\n".join(test["failures"])):
            taken += 1
        else:
            other += 1
    return Counts(len(tests), taken, other)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches/suites/run", description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--suites", nargs="+", default=[suite.name for suite in SUITES])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    options = parser.parse_args()
    results = options.target / time.strftime("results-%Y%m%d-%H%M%S")
    suites = [suite for suite in SUITES if suite.name in options.suites]
    loads = [os.getloadavg()[0]]
    tests: dict[str, int] = {}
    counts: dict[tuple[str, str], list[Counts]] = {}

    def measure(suite: Suite, way: str, label: str, copies: int, ephemeral: str) -> Counts:
        out = results / f"{suite.name}-{way}-{label}"
        start = time.monotonic()
        result = run(suite, way, copies, ephemeral, options.target, out)
        loads.append(os.getloadavg()[0])
        print(
            f"{suite.name}, {way}, {label}: {result.tests} tests, {result.taken} with a port that "
            f"was taken, {result.other} other failures; "
            f"{time.monotonic() - start:.0f} s, load {loads[-1]:.0f}",
            file=sys.stderr,
        )
        return result

    for suite in suites:
        alone = measure(suite, "own", "alone", 1, DEFAULT_EPHEMERAL)
        if not alone.tests or alone.taken or alone.other:
            sys.exit(f"{suite.name} fails alone, with its own picker: {results}")
        tests[suite.name] = alone.tests
    for number in range(1, options.rounds + 1):
        for suite in suites:
            for way in options.ways:
                result = measure(suite, way, str(number), 4, EPHEMERAL)
                # Tests without a record: the time limit ended their copy.
                missing = 4 * tests[suite.name] - result.tests
                result = replace(result, other=result.other + missing)
                counts.setdefault((suite.name, way), []).append(result)

    print(f"Load during the runs: {min(loads):.0f} to {max(loads):.0f}. Logs: {results}\n")
    print("| suite | tests |", " | ".join(options.ways), "| other failures, all rounds |")
    print("|---|---:|", "---:|" * len(options.ways), "---|", sep="")
    for suite in suites:
        results_of = {way: counts[suite.name, way] for way in options.ways}
        taken = [[result.taken for result in results] for results in results_of.values()]
        cells = [f"{statistics.median(row):g} ({min(row)}\u2013{max(row)})" for row in taken]
        others = [
            f"{way} {sum(result.other for result in results)}"
            for way, results in results_of.items()
        ]
        cells = [
            f"{suite.name} {version(suite.name)}",
            f"{4 * tests[suite.name]:,}",
            *cells,
            ", ".join(others),
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
