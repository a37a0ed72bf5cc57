"""The program in the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import LONG

from portlock import FreePort

PROGRAM = shutil.which("portlock", path=sysconfig.get_path("scripts"))


def run(*command, **options):
    outcome = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=LONG, check=True, **options
    )
    return outcome.stdout


def test_it_is_installed_beside_the_interpreter():
    assert PROGRAM is not None
    assert "pick" in run(PROGRAM, "--help")


def test_it_and_the_module_share_leases():
    with FreePort(label="from Python") as port:
        assert "from Python" in run(PROGRAM, "list")
        check = subprocess.run([PROGRAM, "check", str(port)], stdout=subprocess.DEVNULL)
        assert check.returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="there are no such shells")
def test_it_finds_its_caller():
    script = f'port=$("{PROGRAM}" pick); "{PROGRAM}" list --json; echo $$ >&2'
    outcome = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert f'"pid":{outcome.stderr.strip()}' in outcome.stdout.replace(" ", "")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="signals are not shown")
def test_a_command_that_it_runs_has_default_signals():
    run_it = [PROGRAM, "run", "--"] if PROGRAM else []
    show = ["grep", "-E", "^SigIgn", "/proc/self/status"]

    def ignored(*command):
        # Python restores SIGPIPE and the like in its children. Those above 31 are the C library's
        # own, which posix_spawn() ignores.
        return int(run(*command, *show).split()[1], 16) & 0x7FFF_FFFF

    # The parent of these tests may ignore some, as nohup does.
    assert ignored(*run_it) == ignored()
    environment = [*run_it, sys.executable, "-c", "import os; print('LC_CTYPE' in os.environ)"]
    bare = {"PATH": os.environ["PATH"], "PORTLOCK_DIR": os.environ["PORTLOCK_DIR"]}
    assert run(*environment[: len(run_it)], "env", env=bare).count("LC_CTYPE") == 0
