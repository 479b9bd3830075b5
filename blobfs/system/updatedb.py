"""PRUNEFS in /etc/updatedb.conf: locate(1)'s daily walk would read every listing of a container."""

import re
from collections.abc import Iterable
from pathlib import Path

from blobfs.mountinfo import FSTYPE
from blobfs.system.files import write

PATH = "/etc/updatedb.conf"

_LINE = re.compile(r'(?m)^([ \t]*PRUNEFS[ \t]*=[ \t]*")([^"\n]*)(")')
_OURS = f'PRUNEFS = "{FSTYPE}"\n'


def with_hint(text: str) -> str:
    found = _LINE.search(text)
    if found is None:
        return text + ("" if not text or text.endswith("\n") else "\n") + _OURS
    if FSTYPE in found[2].split():
        return text
    return _replaced(text, found, f"{found[2]} {FSTYPE}".lstrip())


def without_hint(text: str) -> str:
    if text.endswith(_OURS):
        return text.removesuffix(_OURS)
    found = _LINE.search(text)
    if found is None or FSTYPE not in found[2].split():
        return text
    return _replaced(text, found, re.sub(rf"\s*(?<!\S){re.escape(FSTYPE)}(?!\S)", "", found[2]))


def _replaced(text: str, found: re.Match[str], value: str) -> str:
    return f"{text[: found.start(2)]}{value}{text[found.end(2) :]}"


def set_hint(root: Path, *, wanted: bool) -> Iterable[str]:
    """Put the hint in, or take it out; what was done. Raises OSError."""
    path = root / PATH.lstrip("/")
    if not path.exists():
        return
    before = path.read_text()
    after = with_hint(before) if wanted else without_hint(before)
    if after == before:
        yield f"unchanged {path}"
    else:
        write(path, after, path.stat().st_mode & 0o7777)
        yield f"updated {path}: updatedb {'passes over' if wanted else 'looks into'} {FSTYPE}"
