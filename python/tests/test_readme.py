"""The examples in Python on the pages run as they stand, and print what they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "python" / "README.md"]
PAGES += [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "protocol.md"]
BLOCK = re.compile(r"^```python( no-run)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(bool(no_run), code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, (no_run, code) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1)
]


def shown(code: str) -> list[str]:
    """Returns a pattern for each text that a comment says `print` prints."""
    texts = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
    # Other numbers, and on Windows another name of the program.
    return [re.sub(r"\d+", r"\\d+", re.escape(text)).replace("python", r"[\w.]+") for text in texts]


@pytest.mark.parametrize(("no_run", "code"), EXAMPLES)
def test_example(no_run, code, script, pytester):
    if no_run:  # It needs a package or a program that is only mentioned.
        compile(code, "the page", "exec")
    elif "def test_" in code:
        pytester.makepyfile("serve = print\n" + code)
        pytester.runpytest_subprocess().assert_outcomes(passed=code.count("def test_"))
    else:
        # The README's later examples go on from its first one.
        printed = script("import portlock\nfrom portlock import FreePort\n" + code)
        for pattern in shown(code):
            assert re.search(f"^{pattern}$", printed, re.MULTILINE), printed


def test_each_page_with_examples_is_found():
    assert len(EXAMPLES) >= 10


def test_every_name_of_the_package_is_typed_and_exported():
    import portlock

    for name in portlock.__all__:
        assert getattr(portlock, name) is not None
    assert (Path(portlock.__file__).parent / "py.typed").exists()
