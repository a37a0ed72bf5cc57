"""Arguments of any type and size lead to no error but a documented one."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import portlock
from portlock import BindFreePort, FreePort, PortSet

ANY = st.one_of(
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.sampled_from([-1, 0, 65535, 65536, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**5000]),
    st.floats(),
    st.text(),
    st.text(st.characters(categories=["Cs", "Cc", "L"])),
    st.binary(),
    st.none(),
    st.booleans(),
    st.lists(st.integers(-5, 70000)),
    st.sets(st.text()),
    st.complex_numbers(),
    st.builds(object),
    st.just(range(10**30)),
    st.just(range(-5, 5)),
    st.just(FreePort),
    st.builds(itertools.repeat, st.just(4000), st.just(2**21)),
)
PARAMETERS = st.sampled_from(
    [
        "start",
        "stop",
        "ports",
        "hosts",
        "protocol",
        "timeout",
        "label",
        "name",
        "root",
        "prefer",
        "reuse_address",
        "hold_socket",
        "lock_dir",
        "no_such_argument",
    ]
)
# The documented errors, and those that Python itself raises for an argument of a wrong type. They
# include UnicodeError, a subclass of ValueError, but not OverflowError.
DOCUMENTED = (portlock.PortlockError, TypeError, ValueError)


def release(leases):
    for lease in leases if isinstance(leases, (list, tuple)) else [leases]:
        for name in ("release", "close"):
            getattr(lease, name, lambda: None)()


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(PARAMETERS, ANY, max_size=3), st.lists(ANY, max_size=2))
def test_arguments(options, bounds):
    # A timeout must be short, and anything but a number is passed as it is.
    options.setdefault("timeout", 0)
    if options["timeout"] in (None, 0.0) or not isinstance(options["timeout"], (int, float)):
        pass
    elif 0 < options["timeout"] < 1e9:
        options["timeout"] = 0.01
    # A name is reserved in this test's directory, but its copy would outlive the test.
    options.pop("name", None)
    for call in (FreePort, FreePort.try_new, FreePort.listen, BindFreePort):
        try:
            leases = call(*bounds, **options)
        except DOCUMENTED:
            continue
        release(leases)


@settings(max_examples=100, deadline=None)
@given(ANY)
def test_arguments_of_methods(value):
    port = FreePort()
    calls = (
        lambda: FreePort.many(value, 4000, 4003, timeout=0),
        lambda: FreePort.block(value, 4000, 4003, timeout=0),
        lambda: FreePort.offsets(value, 4000, 4003, timeout=0),
        lambda: PortSet(value),
        lambda: PortSet([80]).isdisjoint(value),
        lambda: value in PortSet([80]),
        lambda: portlock.entries(value),
        lambda: portlock.lock_dir(value),
        lambda: port.wait_for_server(value, timeout=0),
        lambda: port.delegate_to(value),
        lambda: format(port, value),
    )
    for call in calls:
        try:
            leases = call()
        except DOCUMENTED:
            continue
        if isinstance(leases, list):
            release(leases)
    port.release()


@pytest.mark.parametrize(
    "timeout", [-1, -1e-9, math.nan, math.inf, -math.inf, 1e19, 1.1e9, 10**400, -(10**400)]
)
def test_timeouts(timeout):
    with pytest.raises(ValueError, match="number of seconds"):
        FreePort(timeout=timeout)
    with FreePort() as port:
        for wait in (port.wait_until_listening, lambda timeout: port.wait_for_server(1, timeout)):
            with pytest.raises(ValueError, match="number of seconds"):
                wait(timeout)


@pytest.mark.parametrize(
    "port", [-1, 65536, 2**16 + 80, 2**64 + 80, -(2**200), pytest.param(10**5000, id="huge")]
)
def test_ports_of_any_size(port):
    for ports in (port, [port], (1, port), {port}):
        with pytest.raises(portlock.InvalidPorts, match="1 to 65535"):
            FreePort(ports=ports)
    with pytest.raises(ValueError, match="1 to 65535"):
        FreePort(port, port)


class Number:
    """A number of another library, which only converts to an integer."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


class Array(Number):
    """An array, which converts to an integer if it has one element."""

    def __index__(self):
        raise TypeError("only arrays with one element can be converted")

    def __iter__(self):
        return map(Number, self.value)


def test_numbers_of_other_libraries():
    for port in (-1, 65536, 2**200, -(2**200)):
        for ports in (Number(port), [Number(port)], Array([port])):
            with pytest.raises(portlock.InvalidPorts, match="1 to 65535"):
                FreePort(ports=ports)
    with pytest.raises(portlock.InvalidPorts, match="only 2001"):
        FreePort.many(Number(2**200))
    assert PortSet(Number(80)) == PortSet([80])
    assert PortSet(Array([80, 443])) == PortSet([80, 443])


def test_ports_that_are_none():
    for ports in (0, [], "", range(0), PortSet()):
        with pytest.raises(portlock.InvalidPorts):
            FreePort(ports=ports)
    with pytest.raises(portlock.InvalidPorts, match="for one port alone, pass ports=7000"):
        FreePort(7000)
    with pytest.raises(TypeError, match="named twice"):
        FreePort(4000, ports=4000)
    with pytest.raises(portlock.InvalidPorts, match="more than"):
        FreePort(ports=itertools.repeat(4000))


def test_hosts_and_protocols():
    for host in ("localhost", "", "256.1.1.1", "::1%lo", 7, b"127.0.0.1", [None]):
        with pytest.raises((ValueError, TypeError)):
            FreePort(hosts=host)
    for protocol in ("TCP", "", "sctp"):
        with pytest.raises(ValueError, match="a protocol is"):
            FreePort(protocol=protocol)


def test_an_error_of_an_iterable_is_that_error():
    def ports():
        yield 4000
        raise LookupError

    with pytest.raises(LookupError):
        FreePort(ports=ports())
