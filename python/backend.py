"""Builds the wheel and the source distribution with maturin, and adds the program `portlock`.

maturin builds either an extension module or a program. So cargo builds the program, and this
backend adds it to maturin's wheel. The source distribution is the part of the repository that both
are built from.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maturin
from maturin import (
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# Frontends call a backend in the folder of pyproject.toml: python/, or above it in an sdist.
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# What cargo needs for the library, the program and the extension module. It reads the manifests of
# all members of the workspace.
SOURCES = (
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "cli",
    "examples",
    "python",
    "src",
    "testkit",
)
LEFT_OUT = {"target", "__pycache__", "node_modules", "tests", ".pytest_cache", ".mypy_cache"}

PYPROJECT = """\
[build-system]
requires = ["maturin>=1.9,<2"]
build-backend = "backend"
backend-path = ["python"]
"""


@contextlib.contextmanager
def _here() -> Iterator[None]:
    before = Path.cwd()
    os.chdir(HERE)
    try:
        yield
    finally:
        os.chdir(before)


def build_wheel(
    wheel_directory: str,
    config_settings: Any = None,
    metadata_directory: str | None = None,
) -> str:
    directory = Path(wheel_directory).resolve()
    program = _build_program()
    with _here():
        name: str = maturin.build_wheel(str(directory), config_settings)
    _add_program(directory / name, program)
    return name


def build_editable(
    wheel_directory: str,
    config_settings: Any = None,
    metadata_directory: str | None = None,
) -> str:
    directory = Path(wheel_directory).resolve()
    program = _build_program()
    with _here():
        name: str = maturin.build_editable(str(directory), config_settings)
    _add_program(directory / name, program)
    return name


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    directory = str(Path(metadata_directory).resolve())
    with _here():
        name: str = maturin.prepare_metadata_for_build_wheel(directory, config_settings)
    return name


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def _build_program() -> Path:
    """Builds the program in the workspace, and returns its path."""
    target = os.environ.get("CARGO_BUILD_TARGET")
    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    command = ["cargo", "build", "--release", "--locked", "--package", "portlock-cli"]
    command += ["--bin", "portlock"]
    subprocess.run(command, cwd=ROOT, check=True)
    folder = ROOT / folder / (target or "") / "release"
    return folder / ("portlock.exe" if sys.platform == "win32" else "portlock")


def _add_program(wheel: Path, program: Path) -> None:
    """Adds the program to a wheel, so that it is installed beside the interpreter."""
    name, version = wheel.name.split("-")[:2]
    data = program.read_bytes()
    path = f"{name}-{version}.data/scripts/{program.name}"
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    line = f"{path},sha256={digest},{len(data)}\n"
    record = f"{name}-{version}.dist-info/RECORD"
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        new = Path(folder) / wheel.name
        with (
            zipfile.ZipFile(wheel) as source,
            zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target,
        ):
            # The date of the other files, so that the same source leads to the same wheel.
            entry = zipfile.ZipInfo(path, source.getinfo(record).date_time)
            entry.external_attr = (stat.S_IFREG | 0o755) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            for item in source.infolist():
                if item.filename == record:
                    target.writestr(entry, data)
                    target.writestr(item, source.read(item).decode() + line)
                else:
                    target.writestr(item, source.read(item))
        new.replace(wheel)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder) / prepare_metadata_for_build_wheel(folder) / "METADATA"
        info = metadata.read_bytes()
    fields = dict(line.split(": ", 1) for line in info.decode().split("\n\n")[0].splitlines())
    name = f"{fields['Name']}-{fields['Version']}"
    path = Path(sdist_directory) / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for source in SOURCES:
            archive.add(ROOT / source, f"{name}/{source}", filter=_included)
        for extra, data in (("pyproject.toml", PYPROJECT.encode()), ("PKG-INFO", info)):
            member = tarfile.TarInfo(f"{name}/{extra}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path.name


def _included(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    path = Path(member.name)
    if path.name in LEFT_OUT or path.suffix in {".so", ".pyd"}:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
