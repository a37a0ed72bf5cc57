"""The plugin for pytest."""

from __future__ import annotations

import pytest

import portlock

pytest.importorskip("xdist")
pytest.importorskip("pytest_asyncio")
pytest.importorskip("anyio")

FIXTURES = """
import socket
import portlock
import pytest

def is_leased(port):
    try:
        portlock.FreePort(ports=port, timeout=0).release()
    except portlock.Exhausted:
        return True
    return False

seen = {}

@pytest.fixture(scope="session")
def server_port(session_free_port_factory):
    return session_free_port_factory()

def test_one(free_port, server_port, request):
    assert isinstance(free_port, portlock.FreePort)
    (entry,) = [entry for entry in portlock.entries() if entry.port == free_port.port]
    assert entry.is_leased and entry.label.endswith("::test_one")
    seen.update(one=free_port.port, server=server_port.port)

def test_two(free_port_factory):
    ports = {int(free_port_factory()) for _ in range(5)} | {int(free_port_factory(hosts="::1"))}
    assert len(ports) == 6
    assert free_port_factory(4000, 4999) if False else True
    assert not is_leased(seen["one"]), "it was released at the end of its test"
    assert is_leased(seen["server"])

def test_another_protocol_and_range(free_port_factory):
    port = free_port_factory(start=4000, stop=6000, protocol="udp", label="mine")
    assert 4000 <= port.port <= 6000
"""

OVERRIDE = """
import portlock
import pytest

NAMES = ["free_tcp_port", "free_udp_port", "unused_tcp_port", "unused_udp_port"]

def is_leased(port):
    try:
        portlock.FreePort(ports=port, timeout=0).release()
    except portlock.Exhausted:
        return True
    return False

@pytest.mark.parametrize("name", NAMES)
def test_port(request, name):
    port = request.getfixturevalue(name)
    assert type(port) is int
    assert is_leased(port) is OVERRIDDEN

@pytest.mark.parametrize("name", NAMES)
def test_factory(request, name):
    factory = request.getfixturevalue(name + "_factory")
    ports = [factory() for _ in range(3)]
    assert len(set(ports)) == 3
    assert all(type(port) is int and is_leased(port) is OVERRIDDEN for port in ports)
"""

PLUGINS = ("-p", "no:cacheprovider")


def run(pytester, *arguments):
    outcome = pytester.runpytest_subprocess(*PLUGINS, *arguments)
    outcome.stdout.no_fnmatch_line("*ResourceWarning*")
    return outcome


def test_the_fixtures_lease_and_release(pytester):
    pytester.makepyfile(FIXTURES)
    run(pytester, "-W", "error::ResourceWarning").assert_outcomes(passed=3)
    assert not any(entry.is_leased for entry in portlock.entries())


def test_without_the_option_the_fixtures_of_others_are_theirs(pytester):
    pytester.makepyfile("OVERRIDDEN = False\n" + OVERRIDE)
    run(pytester).assert_outcomes(passed=8)


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_with_the_option_they_are_leases(pytester, workers):
    pytester.makeini("[pytest]\nportlock_override = true\n")
    pytester.makepyfile("OVERRIDDEN = True\n" + OVERRIDE)
    run(pytester, *workers).assert_outcomes(passed=8)


def test_a_conftest_has_the_last_word(pytester):
    pytester.makeini("[pytest]\nportlock_override = true\n")
    pytester.makeconftest(
        "import pytest\n@pytest.fixture\ndef unused_tcp_port():\n    return 'mine'\n"
    )
    pytester.makepyfile("def test_it(unused_tcp_port):\n    assert unused_tcp_port == 'mine'\n")
    run(pytester).assert_outcomes(passed=1)


def test_the_ports_to_choose_from(pytester, block, monkeypatch):
    ports = block(3)
    pytester.makepyfile(
        f"def test_it(free_port):\n    assert {ports[0]} <= free_port.port <= {ports[-1]}\n"
    )
    chosen = f"{ports[0]}-{ports[-1]}"
    run(pytester, f"--portlock-ports={chosen}").assert_outcomes(passed=1)
    run(pytester, f"--portlock-ports={chosen}", "-n", "2").assert_outcomes(passed=1)
    monkeypatch.setenv("PORTLOCK_PORTS", chosen)
    run(pytester).assert_outcomes(passed=1)
    outcome = run(pytester, "--portlock-ports=nonsense")
    outcome.stderr.fnmatch_lines("*--portlock-ports: invalid port set*")
    outcome = run(pytester, "--portlock-ports=,")
    outcome.stderr.fnmatch_lines("*--portlock-ports: there are no ports*")
    monkeypatch.setenv("PORTLOCK_PORTS", "nonsense")
    run(pytester).stderr.fnmatch_lines('ERROR: PORTLOCK_PORTS="nonsense": invalid port set*')


def test_a_factory_of_the_session_outlives_its_ports(pytester, block):
    ports = block(3)
    pytester.makeini("[pytest]\nportlock_override = true\n")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(12))
        def test_it(unused_tcp_port_factory, number):
            assert len({unused_tcp_port_factory() for _ in range(2)}) == 2
        """
    )
    run(pytester, f"--portlock-ports={ports[0]}-{ports[-1]}").assert_outcomes(passed=12)


def test_the_session_server_keeps_its_port(pytester, block):
    ports = block(2)
    pytester.makepyfile(
        """
        import socket
        import pytest

        @pytest.fixture(scope="session")
        def server(session_free_port_factory):
            with socket.create_server(session_free_port_factory().addr) as server:
                yield server

        @pytest.mark.parametrize("number", range(6))
        def test_it(server, session_free_port_factory, number):
            assert session_free_port_factory().port != server.getsockname()[1]
        """
    )
    run(pytester, f"--portlock-ports={ports[0]}-{ports[-1]}").assert_outcomes(passed=6)
