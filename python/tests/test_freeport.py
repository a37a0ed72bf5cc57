"""A lease behaves as users of Python expect."""

from __future__ import annotations

import copy
import errno
import gc
import ipaddress
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import weakref

import pytest
from conftest import LONG

import portlock
from portlock import BindFreePort, FreePort


def is_leased(port):
    try:
        FreePort(ports=port, timeout=0).release()
    except portlock.Exhausted:
        return True
    return False


def test_a_lease_is_its_number():
    with FreePort() as port:
        assert 4000 <= port.port <= 6000
        assert int(port) == port.port == port.__index__()
        assert str(port) == f"{port}" == str(port.port)
        assert f"{port:>8}" == f"{port.port:>8}"
        assert f"{port:x}" == f"{port.port:x}"
        assert range(70000)[port] == port.port
        assert port.addr == ("127.0.0.1", port.port)
        assert repr(port) == f"<FreePort {port.port}>"
        assert port.is_leased
    assert repr(port) == f"<FreePort {port.port} (released)>"
    assert not port.is_leased


def test_the_address_is_that_of_the_first_host():
    for hosts, address in [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        (ipaddress.ip_address("127.0.0.2"), "127.0.0.2"),
        ("0.0.0.0", "127.0.0.1"),
        ((), "127.0.0.1"),
        (None, "127.0.0.1"),
    ]:
        with FreePort(hosts=hosts) as port:
            assert port.addr == (address, port.port)


def test_the_address_can_be_connected_to():
    with FreePort() as port, socket.create_server(port.addr) as server:
        with socket.create_connection(port.addr, timeout=LONG) as client:
            assert client.getpeername() == port.addr
        server.accept()[0].close()


def test_both_ends_of_a_range_are_in_it(block):
    ports = block(2)
    leases = FreePort.many(2, ports[0], ports[-1])
    assert {port.port for port in leases} == set(ports)
    for port in leases:
        port.release()


def test_ports_may_be_of_many_types(block):
    (only,) = block(1)
    with FreePort(ports=only) as port:
        for ports in (
            only,
            port,
            str(only),
            [only],
            range(only, only + 1),
            {only: 1},
            (only, only),
        ):
            with pytest.raises(portlock.Exhausted):
                FreePort(ports=ports, timeout=0)
    with FreePort(ports=portlock.PortSet([only])) as port:
        assert port.port == only


def test_releasing_twice_is_no_error_and_using_a_released_lease_is():
    port = FreePort()
    port.release()
    port.release()
    with port:
        pass
    for use in (lambda: port.delegate_to(os.getpid()), port.detach_fd):
        with pytest.raises(ValueError, match="has ended"):
            use()


def test_a_lease_ends_when_it_is_collected_with_a_warning():
    port = FreePort(label="forgotten")
    number, alive = port.port, weakref.ref(port)
    with pytest.warns(ResourceWarning, match=f"unreleased <FreePort {number}>"):
        del port
    assert alive() is None
    assert not is_leased(number)


def test_a_recorded_warning_does_not_keep_the_lease(recwarn):
    port = FreePort(label="forgotten")
    number = port.port
    del port
    (warning,) = recwarn
    assert warning.category is ResourceWarning
    assert not is_leased(number)


def test_a_released_lease_is_collected_without_a_warning(recwarn):
    with FreePort():
        pass
    gc.collect()
    assert not recwarn


def test_a_lease_cannot_be_copied_or_pickled():
    with FreePort() as port:
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="belongs to this process"):
                copied(port)


def test_a_subclass_is_made_by_all_class_methods():
    class Mine(FreePort):
        pass

    leases = [Mine(), Mine.try_new(), *Mine.many(1), *Mine.block(1), *Mine.offsets([0])]
    lease, listener = Mine.listen()
    listener.close()
    for port in [*leases, lease]:
        assert type(port) is Mine
        port.release()


def test_listen_returns_the_listener():
    port, listener = FreePort.listen(hosts="127.0.0.1", timeout=5)
    with port, listener:
        assert listener.getsockname() == port.addr
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not listener.get_inheritable()
        socket.create_connection(port.addr, timeout=LONG).close()
    with pytest.raises(portlock.Unsupported):
        FreePort.listen(protocol="udp")


def test_many_block_and_offsets():
    ports = FreePort.many(3)
    assert len({port.port for port in ports}) == 3
    block = FreePort.block(3, 4000, 6000)
    assert [port.port - block[0].port for port in block] == [0, 1, 2]
    pair = FreePort.offsets([0, 10000], start=4000)
    assert pair[1].port - pair[0].port == 10000
    for port in ports + block + pair:
        port.release()
    assert FreePort.many(0) == FreePort.block(0) == FreePort.offsets([]) == []
    with pytest.raises(portlock.InvalidPorts):
        FreePort.many(3, 4000, 4001)


def test_exhausted_says_why_and_by_whom():
    with FreePort(label="the first") as port:
        with pytest.raises(portlock.Exhausted) as caught:
            FreePort(ports=port, timeout=0)
        error = caught.value
        assert type(error) is portlock.Exhausted
        assert error.kind == "exhausted"
        assert (error.counts.leased, error.counts.bound) == (1, 0)
        assert "the first" in error.holders[port.port]
        assert str(error).startswith(f"no free port in {port}: 1 leased")
        with pytest.raises(TimeoutError) as caught:
            FreePort(ports=port, timeout=0.05)
        assert isinstance(caught.value, portlock.Exhausted)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (type(again), str(again)) == (portlock.ExhaustedTimeout, str(caught.value))
        assert (again.counts, again.holders) == (caught.value.counts, caught.value.holders)
    with socket.create_server(("", 0)) as server, pytest.raises(portlock.Exhausted) as caught:
        FreePort.try_new(ports=server.getsockname()[1])
    assert caught.value.counts.bound == 1


def test_errors_have_a_number_and_a_path(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(portlock.LockDirError) as caught:
        FreePort(lock_dir=missing)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(missing)
    assert str(missing) in str(caught.value)
    assert isinstance(caught.value, OSError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.errno, str(again)) == (errno.ENOENT, str(caught.value))
    missing.write_text("")
    with pytest.raises(portlock.LockDirError, match="not a directory") as caught:
        FreePort(lock_dir=missing)
    assert caught.value.filename == str(missing)


def test_the_hierarchy_of_errors():
    for error, base in [
        (portlock.InvalidPorts, ValueError),
        (portlock.InvalidName, ValueError),
        (portlock.PermissionDenied, PermissionError),
        (portlock.ExhaustedTimeout, TimeoutError),
        (portlock.ExhaustedTimeout, portlock.Exhausted),
        (portlock.ServerTimeout, TimeoutError),
        (portlock.ProcessError, ProcessLookupError),
    ]:
        assert issubclass(error, base)
        assert issubclass(error, portlock.PortlockError)
        assert str(error("text")) == "text"
    assert str(portlock.PortlockError()) == ""


def test_a_package_that_is_imported_again_raises_its_own_errors(script):
    script("""
import sys
import portlock
first = portlock.Exhausted
port = portlock.FreePort(ports=portlock.server_ports())
for _ in range(2):
    try:
        portlock.FreePort(ports=port, timeout=0)
    except portlock.Exhausted:
        pass
    for name in [name for name in sys.modules if name.startswith("portlock")]:
        del sys.modules[name]
    import portlock
assert portlock.Exhausted is not first
port.release()
""")


def test_a_name_has_the_same_port_every_day(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    root = tmp_path / "root"
    root.mkdir()
    with FreePort(name="web", root=root) as today:
        assert today.port in portlock.server_ports()
    with FreePort(name="web", root=str(root)) as tomorrow:
        assert tomorrow.port == today.port
    with pytest.raises(portlock.Exhausted) as caught:
        FreePort(ports=today, timeout=0)
    assert caught.value.counts.reserved == 1
    with pytest.raises(portlock.InvalidName):
        FreePort(name="not a name", root=root)
    with pytest.raises(portlock.InvalidName):
        FreePort(name="web", root=tmp_path / "missing")


def test_prefer_is_the_same_port_while_it_is_free():
    name = "my-worktree/api"
    with FreePort(prefer=name) as port, FreePort(prefer=name) as other:
        assert other.port != port.port
    with FreePort(prefer="my-worktree/api") as again:
        assert again.port == port.port


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can")
def test_a_held_socket_keeps_the_port_bound():
    with FreePort(hold_socket=True) as port:
        with socket.socket() as strict, pytest.raises(OSError, match=r"in use"):
            strict.bind(("", port.port))
        socket.create_server(port.addr).close()


def test_a_lease_can_be_delegated():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    port = FreePort()
    assert port.delegate_to(child.pid) == port.port
    assert not port.is_leased
    assert is_leased(port.port)
    (entry,) = (entry for entry in portlock.entries() if entry.port == port.port)
    assert (entry.state, entry.pid, entry.is_leased) == ("delegated", child.pid, True)
    child.communicate(b"\n", timeout=LONG)
    assert not is_leased(port.port)
    with pytest.raises(portlock.ProcessError):
        FreePort().delegate_to(child.pid)


@pytest.mark.skipif(os.name != "posix", reason="a handle does not hold a lock")
def test_a_lease_can_be_inherited_as_a_descriptor():
    port = FreePort()
    descriptor = port.detach_fd()
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor]
    )
    os.close(descriptor)
    assert is_leased(port.port)
    child.communicate(b"\n", timeout=LONG)
    assert not is_leased(port.port)


def test_wait_until_listening_and_for_the_server():
    with FreePort() as port:
        with pytest.raises(portlock.ServerTimeout, match=f"127.0.0.1:{port}"):
            port.wait_until_listening(timeout=0.05)
        with pytest.raises(TimeoutError):
            port.wait_for_server(os.getpid(), timeout=0)
        started = []

        def start():
            time.sleep(0.1)
            started.append(socket.create_server(port.addr))

        thread = threading.Thread(target=start)
        thread.start()
        port.wait_until_listening(timeout=LONG)
        pid, _ = port.wait_for_server(os.getpid())
        assert pid == os.getpid()
        thread.join()
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            with pytest.raises(portlock.OtherServer):
                port.wait_for_server(other.pid)
        finally:
            other.communicate(b"\n", timeout=LONG)
        started[0].close()


def test_a_server_on_ipv6_alone_is_found():
    with FreePort() as port, socket.create_server(("::1", port.port), family=socket.AF_INET6):
        port.wait_until_listening(timeout=LONG)


def test_entries_and_clean(lock_dir):
    assert portlock.lock_dir() == lock_dir
    assert portlock.entries() == []
    before = time.time()
    with FreePort(label="mine") as port:
        (entry,) = portlock.entries()
        assert entry.port == port.port
        assert (entry.state, entry.pid, entry.label) == ("held", os.getpid(), "mine")
        assert abs(entry.since - before) < LONG
        assert "mine" in entry.holder
        assert portlock.clean() == (0, 1)
    (entry,) = portlock.entries(lock_dir)
    assert (entry.state, entry.is_leased) == ("stale", False)
    assert portlock.clean(str(lock_dir)).removed == 1


def test_bind_free_port_is_the_probe_alone():
    with BindFreePort(4000, 6000) as probe:
        assert 4000 <= int(probe) == probe.port <= 6000
        assert str(probe) == f"{probe}" == str(probe.port)
        with socket.socket() as strict, pytest.raises(OSError, match=r"in use"):
            strict.bind(("", probe.port))
        with pytest.raises(portlock.Exhausted):
            BindFreePort(ports=probe)
    probe.release()
    with socket.socket() as strict:
        strict.bind(("", probe.port))


def test_no_descriptor_is_left_after_many_leases():
    def count():
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("descriptors are not listed")
    FreePort().release()
    before = count()
    for _ in range(10_000):
        with FreePort():
            pass
    assert count() == before
