from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import portlock
from portlock import PortSet

PORTS = st.integers(1, 65535)


def test_text_and_ranges():
    ports = PortSet("4000-4999,!4045,7000")
    assert len(ports) == 1000
    assert 4044 in ports
    assert 4045 not in ports
    assert str(ports) == "4000-4044,4046-4999,7000"
    assert repr(ports) == "PortSet('4000-4044,4046-4999,7000')"
    assert PortSet(range(4000, 4003)) == PortSet("4000-4002") == PortSet([4002, 4000, 4001])
    assert PortSet(range(4004, 3999, -2)) == PortSet([4000, 4002, 4004])
    assert PortSet(range(5, 5)) == PortSet() == PortSet([]) == PortSet(0)
    assert not PortSet()


@given(st.sets(PORTS), st.sets(PORTS))
def test_it_is_a_set(a, b):
    ours, other = PortSet(a), PortSet(b)
    assert set(ours | other) == a | b
    assert set(ours & other) == a & b
    assert set(ours - other) == a - b
    assert (ours == other) == (a == b)
    assert (ours <= other, ours < other, ours >= other, ours > other) == (
        a <= b,
        a < b,
        a >= b,
        a > b,
    )
    assert ours.isdisjoint(other) == a.isdisjoint(b)
    assert list(ours) == sorted(a)
    assert PortSet(str(ours)) == ours == pickle.loads(pickle.dumps(ours)) == eval(repr(ours))
    assert hash(PortSet(sorted(a))) == hash(ours)


def test_members_of_other_types_are_no_ports():
    ports = PortSet([80])
    for member in (-1, 2**80, "80", None, 80.0, [80]):
        assert (member in ports) is False
    assert (ports == {80}) is False
    with pytest.raises(TypeError):
        ports | {80}
    with pytest.raises(TypeError):
        ports < 7  # noqa: B015


def test_server_ports_leave_out_the_ephemeral_range(monkeypatch):
    ephemeral = portlock.ephemeral_port_range()
    assert isinstance(ephemeral, range)
    assert portlock.server_ports().isdisjoint(ephemeral)
    monkeypatch.setenv("PORTLOCK_PORTS", "20000-20009")
    assert portlock.server_ports() == PortSet(range(20000, 20010))
    monkeypatch.setenv("PORTLOCK_PORTS", "nonsense")
    with pytest.raises(portlock.InvalidPorts, match="PORTLOCK_PORTS"):
        portlock.server_ports()
