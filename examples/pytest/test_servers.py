import subprocess
import urllib.request

import pytest


@pytest.mark.parametrize("name", ["alice", "bob", "carol", "dave", "erin", "frank"])
def test_each_server_has_its_own_files(web_server, tmp_path, name):
    (tmp_path / "greeting").write_text(f"hello from {name}")
    with urllib.request.urlopen(f"{web_server}/greeting", timeout=10) as answer:
        assert answer.read().decode() == f"hello from {name}"


def test_others_see_that_a_port_is_leased(free_port):
    check = subprocess.run(["portlock", "check", str(free_port)], stdout=subprocess.PIPE, text=True)
    assert check.returncode == 1
    assert f"{free_port} leased" in check.stdout
