"""Plugin for pytest: replaces a suite's way to pick a port, and records each test.

SUITES_PICKER chooses `own` (the suite's function), `random` (a number from SUITES_PORTS) or
`portlock` (a lease from SUITES_PORTS, until the test has ended).
Only the tests that pick a port are run. Each appends a line of JSON to SUITES_RECORD.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import portlock
import pytest

WAY = os.environ["SUITES_PICKER"]
PORTS = portlock.PortSet(os.environ["SUITES_PORTS"])
RECORD = os.environ["SUITES_RECORD"]

# Of the test that runs: when it picked which port, its leases, and what its failures say.
_picked: list[tuple[float, int]] = []
_leases: list[portlock.FreePort] = []
_failures: list[str] = []
_skipped: list[str] = []


def _replace(owner: object, name: str) -> None:
    own: Callable[..., int] = getattr(owner, name)
    # Without this check, a version that names it otherwise would be measured with its own picker.
    if not callable(own):
        raise pytest.UsageError(f"{owner}.{name} is not a function")

    def pick(*arguments: object) -> int:
        if WAY == "own":
            port = own(*arguments)
        elif WAY == "random":
            port = random.choice(list(PORTS))
        else:
            label = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
            lease = portlock.FreePort(ports=PORTS, label=label or None)
            _leases.append(lease)
            port = lease.port
        _picked.append((time.time(), port))
        return port

    setattr(owner, name, pick)


def pytest_configure() -> None:
    if importlib.util.find_spec("ephemeral_port_reserve"):  # Werkzeug
        import ephemeral_port_reserve

        _replace(ephemeral_port_reserve, "reserve")
    if importlib.util.find_spec("jupyter_client"):
        from jupyter_client.connect import LocalPortCache

        _replace(LocalPortCache, "find_available_port")


def pytest_plugin_registered(plugin: object) -> None:
    """Replaces uvicorn's picker, which is in its conftest.py."""
    if (getattr(plugin, "__file__", None) or "").endswith("uvicorn/tests/conftest.py"):
        _replace(plugin, "_unused_port")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that use none of the fixtures that pick a port."""
    picks = {"unused_tcp_port", "dev_server", "standard_app", "kc"}
    using = [item for item in items if picks & set(getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=[item for item in items if item not in using])
    items[:] = using


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    if report.skipped:
        _skipped.append(report.longreprtext)
    if report.failed:
        folder = getattr(item, "funcargs", {}).get("tmp_path")
        if folder and (folder / "log.txt").exists():  # of Werkzeug's server
            log = (folder / "log.txt").read_text(errors="replace")
            report.sections.append(("the server's log", log))
        texts = [report.longreprtext, *(text for _, text in report.sections)]
        _failures.append("\n".join(texts))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Ends the leases of a test, and writes its record, after its last fixture."""
    for list_ in (_picked, _failures, _skipped):
        list_.clear()
    try:
        return (yield)
    finally:
        while _leases:
            _leases.pop().release()
        if _failures or not _skipped:
            record = {
                "test": item.nodeid,
                "picked": _picked,
                "end": time.time(),
                "failures": _failures,
            }
            with open(RECORD, "a") as file:
                file.write(json.dumps(record) + "\n")
