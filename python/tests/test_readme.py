"""The README's examples run unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
# Except those that need a package or a program that is only mentioned.
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_example(number, script):
    code = BLOCKS[number]
    if "def test_" in code:
        compile(code, "README.md", "exec")
        return
    script("import portlock\nfrom portlock import FreePort\n" + code)


def test_every_name_of_the_package_is_typed_and_exported():
    import portlock

    for name in portlock.__all__:
        assert getattr(portlock, name) is not None
    assert (Path(portlock.__file__).parent / "py.typed").exists()
