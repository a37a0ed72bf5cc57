"""The interfaces of other tools. test_third_party.py runs their own test suites."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from conftest import LONG

import portlock
from portlock import FreePort
from portlock.compat import portpicker, pysys, socket_helper
from portlock.compat.recipe import get_free_port


def is_leased(port):
    """Asks another process, because one process can lease a port only once."""
    code = "import sys; from portlock import _native as native\n"
    code += "print(native.Request(ports=int(sys.argv[1])).is_free())"
    outcome = subprocess.run(
        [sys.executable, "-c", code, str(port)], stdout=subprocess.PIPE, text=True, timeout=LONG
    )
    return {"True\n": False, "False\n": True}[outcome.stdout]


def test_the_recipe():
    with get_free_port() as port:
        assert 4000 <= port.port <= 6000
    with get_free_port(start=20000, stop=20999) as port:
        assert 20000 <= port.port <= 20999


class TestPortpicker:
    @pytest.fixture(autouse=True)
    def _none_is_left(self):
        yield
        for port in list(portpicker._random_ports):
            portpicker.return_port(port)

    def test_a_picked_port_is_leased_until_it_is_returned(self):
        port = portpicker.pick_unused_port()
        assert is_leased(port)
        assert portpicker.is_port_free(port)
        portpicker.return_port(port)
        assert not is_leased(port)
        portpicker.return_port(port)

    def test_legacy_names(self):
        assert portpicker.PickUnusedPort is portpicker.pick_unused_port
        assert portpicker.IsPortFree is portpicker.is_port_free
        assert portpicker.Bind is portpicker.bind
        assert portpicker.GetPortFromPortServer is portpicker.get_port_from_port_server

    def test_a_port_of_another_caller_is_not_free_and_is_not_bound(self, monkeypatch):
        with FreePort() as port:
            monkeypatch.setattr(portpicker, "_can_bind", None)
            assert not portpicker.is_port_free(port.port)
            assert portpicker.bind(port.port, socket.SOCK_STREAM, 0) is None

    def test_a_bound_port_is_not_free(self):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            port = portpicker.pick_unused_port()
            with socket.socket(socket.AF_INET, kind) as server:
                server.bind(("127.0.0.1", port))
                assert not portpicker.is_port_free(port)
                assert portpicker.bind(port, kind, 0) is None
            assert portpicker.bind(port, kind, 0) == port

    def test_bind_to_port_0_chooses_one(self):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            assert portpicker.bind(0, kind, 0) in portlock.ephemeral_port_range()

    def test_for_another_process_the_lease_is_its_own(self):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        port = portpicker.pick_unused_port(pid=child.pid)
        assert is_leased(port)
        child.communicate(b"\n", timeout=LONG)
        assert not is_leased(port)
        port = portpicker.pick_unused_port(pid=child.pid)
        assert is_leased(port), "this process's"

    def test_reserved_ports_come_first(self, block):
        (port,) = block(1)
        portpicker.add_reserved_port(port)
        assert is_leased(port)
        assert portpicker.pick_unused_port() == port
        assert portpicker.pick_unused_port() != port
        portpicker._owned_ports.discard(port)
        portpicker._leases.pop(port).release()

    def test_no_free_port(self, block, monkeypatch):
        (port,) = block(1)
        monkeypatch.setenv("PORTLOCK_PORTS", str(port))
        with socket.create_server(("", port)):
            monkeypatch.setattr(
                portpicker, "FreePort", lambda **options: FreePort(**{**options, "timeout": 0})
            )
            with pytest.raises(portpicker.NoFreePortFoundError, match="bound by"):
                portpicker.pick_unused_port()

    def test_a_server_that_cannot_be_reached_is_reported(self, capfd, tmp_path):
        address = str(tmp_path / "missing")
        assert portpicker.get_port_from_port_server(address) is None
        assert address in capfd.readouterr().err
        assert portpicker.get_port_from_port_server("") is None
        assert portpicker.pick_unused_port(portserver_address=address) in portlock.server_ports()

    def test_as_a_program_it_leases_for_its_caller(self):
        command = [sys.executable, "-m", "portlock.compat.portpicker", str(os.getpid())]
        port = int(subprocess.check_output(command, timeout=LONG))
        assert is_leased(port)
        assert subprocess.run([*command[:3], "-h"], stdout=subprocess.DEVNULL).returncode == 1


class TestPySys:
    @pytest.fixture(autouse=True)
    def _pool(self, block, monkeypatch):
        ports = block(4)
        monkeypatch.setenv("PYSYS_PORTS", f"{ports[0]} - {ports[2]} , {ports[3]}\n")
        monkeypatch.setattr(pysys, "tcpServerPortPool", None)
        monkeypatch.setattr(pysys, "_pool", pysys._Pool())
        self.ports = ports
        yield
        for lease in pysys._pool.leases.values():
            lease.release()

    def test_a_port_is_leased_until_it_is_cleaned_up(self):
        owner = pysys.TCPPortOwner()
        assert owner.port in self.ports
        assert is_leased(owner.port)
        assert pysys.portIsInUse(owner.port)
        owner.cleanup()
        assert not is_leased(owner.port)
        assert not pysys.portIsInUse(owner.port)
        owner.cleanup()

    def test_hosts_and_families(self):
        with socket.create_server(("127.0.0.1", self.ports[0])):
            for host, family, in_use in [
                ("", socket.AF_INET, True),
                ("localhost", socket.AF_INET, True),
                ("127.0.0.2", socket.AF_INET, sys.platform != "linux"),
                ("::1", socket.AF_INET6, False),
                ("localhost", socket.AF_INET6, False),
            ]:
                try:
                    assert pysys.portIsInUse(self.ports[0], host, family) == in_use
                except socket.gaierror:
                    assert host == "localhost", "a machine may have no IPv6 address of that name"
        port = pysys.allocateTCPPort(["::1"], socket.AF_INET6)
        assert is_leased(port)
        with pytest.raises(OSError, match=r".*"):
            pysys.allocateTCPPort(["no such host"])

    def test_the_ports_to_choose_from(self, monkeypatch, tmp_path):
        assert pysys.getServerTCPPorts() == list(self.ports)
        monkeypatch.setattr(pysys, "excludedTCPPorts", {self.ports[1]})
        assert self.ports[1] not in pysys.getServerTCPPorts()
        path = tmp_path / "ports"
        path.write_text(f"{self.ports[0]}\n{self.ports[2]} - {self.ports[3]}\n")
        monkeypatch.delenv("PYSYS_PORTS")
        monkeypatch.setenv("PYSYS_PORTS_FILE", str(path))
        assert pysys.getServerTCPPorts() == [self.ports[0], *self.ports[2:]]
        path.write_text("nonsense")
        with pytest.raises(portlock.InvalidPorts, match="PYSYS_PORTS_FILE"):
            pysys.getServerTCPPorts()
        monkeypatch.delenv("PYSYS_PORTS_FILE")
        first, last = pysys.getEphemeralTCPPortRange()
        assert range(first, last + 1) == portlock.ephemeral_port_range()
        assert not set(pysys.getServerTCPPorts()) & (set(range(first, last + 1)) | {6000})
        monkeypatch.setattr(pysys, "getEphemeralTCPPortRange", lambda: (2000, 65535))
        assert max(pysys.getServerTCPPorts()) < 2000
        monkeypatch.setenv("PORTLOCK_PORTS", "20000")
        assert pysys.getServerTCPPorts() == [20000]

    def test_the_numbers_that_are_logged(self, caplog):
        owners = [pysys.TCPPortOwner() for _ in range(3)]
        for owner in owners:
            owner.cleanup()
        pysys.allocateTCPPort()
        with caplog.at_level("DEBUG"):
            stats = pysys.logPortAllocationStats()
        assert stats == {
            "totalServerPorts": 4,
            "peakAllocatedPorts": 3,
            "lifetimeTotalAllocatedPorts": 4,
        }
        assert "'peakAllocatedPorts': 3" in caplog.text


class TestSocketHelper:
    def test_names(self):
        assert socket_helper.HOST == "localhost"
        assert (socket_helper.HOSTv4, socket_helper.HOSTv6) == ("127.0.0.1", "::1")

    def test_a_port_that_was_found_is_leased_for_a_while(self):
        port = socket_helper.find_unused_port()
        assert is_leased(port)
        socket.create_server(("", port)).close()
        found = {socket_helper.find_unused_port() for _ in range(socket_helper._MAX_KEPT)}
        assert port not in found
        assert not is_leased(port)

    def test_udp_and_ipv6(self):
        port = socket_helper.find_unused_port(socktype=socket.SOCK_DGRAM)
        with socket.socket(type=socket.SOCK_DGRAM) as server:
            server.bind(("", port))
        port = socket_helper.find_unused_port(socket.AF_INET6)
        socket.create_server(("::1", port), family=socket.AF_INET6).close()

    def test_it_ends_its_own_leases_before_it_fails(self, block, monkeypatch):
        ports = block(3)
        monkeypatch.setenv("PORTLOCK_PORTS", f"{ports[0]}-{ports[-1]}")
        monkeypatch.setattr(socket_helper, "_kept", socket_helper._Kept())
        for _ in range(10):
            assert socket_helper.find_unused_port() in ports
        for lease in socket_helper._kept.leases:
            lease.release()

    @pytest.mark.parametrize(
        ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    )
    def test_bind_port(self, family, host):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as server:
                port = socket_helper.bind_port(server, host)
                assert server.getsockname()[:2] == (host, port)
        for name in ("SO_REUSEADDR", "SO_REUSEPORT"):
            if not hasattr(socket, name):
                continue
            with socket.socket(family) as server:
                server.setsockopt(socket.SOL_SOCKET, getattr(socket, name), 1)
                with pytest.raises(Exception, match=name):
                    socket_helper.bind_port(server, host)
                assert server.getsockname()[1] == 0
            with socket.socket(family, socket.SOCK_DGRAM) as server:
                server.setsockopt(socket.SOL_SOCKET, getattr(socket, name), 1)
                socket_helper.bind_port(server, host)
