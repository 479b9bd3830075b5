"""Every parser of foreign bytes under atheris, in equal shares of the time.

What it finds is printed as Base64, to be kept as a file in `tests/fuzz/corpus/NAME/`.
"""

import base64
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, found

ROOT = Path(__file__).parents[2]
LONGEST_INPUT = 16 * 1024
SLOWEST_S = 20
MEMORY_MB = 2048
START_LIMIT_S = 120

_WORD = re.compile(rb"[A-Za-z0-9_.:-]{2,32}")
_RUNS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_EDGES = re.compile(r"cov: (\d+)")


def run(seed: int, minutes: float, say: Callable[[str], None]) -> None:
    """Raises AssertionError with the inputs that were not stood."""
    failures: list[str] = []
    for name in TARGETS:
        failures += fuzz(name, seed, 60 * minutes / len(TARGETS), say)
    assert not failures, "\n".join(failures)


def fuzz(name: str, seed: int, seconds: float, say: Callable[[str], None]) -> list[str]:
    """Fuzz one target for so long, whatever it finds; what it has found, in words."""
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix=f"blobfs-fuzz-{name}-") as scratch:
        corpus, artifacts = Path(scratch, "corpus"), Path(scratch, "artifacts")
        corpus.mkdir()
        artifacts.mkdir()
        inputs = [*seeds(name), *(path.read_bytes() for path in found(name))]
        for number, data in enumerate(inputs):
            (corpus / f"seed-{number}").write_bytes(data)
        words = sorted({word for data in inputs for word in _WORD.findall(data)})
        Path(scratch, "words").write_bytes(b"".join(b'"%s"\n' % word for word in words))
        started, runs, edges = time.monotonic(), 0, 0
        while (left := seconds - (time.monotonic() - started)) > 0:
            try:
                output = _atheris(name, seed + len(failures), left, corpus, artifacts)
            except subprocess.TimeoutExpired:
                failures.append(f"{name}: an input takes so long that libFuzzer does not end")
                say(failures[-1])
                break
            runs += sum(int(text) for text in _RUNS.findall(output))
            edges = max([edges, *(int(text) for text in _EDGES.findall(output))])
            crashes = list(artifacts.iterdir())
            for crash in crashes:
                data = base64.b64encode(crash.read_bytes()).decode()
                failures.append(f"{name}: {crash.name}: {data}\n{_last_lines(output)}")
                say(failures[-1])
                crash.unlink()
            if not crashes and not _RUNS.search(output):
                raise AssertionError(f"atheris did not run: {output[-2000:]}")
        spent = time.monotonic() - started
    say(f"{name}: {spent:.0f} s, {runs:,} inputs, {edges} edges, {len(failures)} not stood")
    return failures


def _atheris(name: str, seed: int, seconds: float, corpus: Path, artifacts: Path) -> str:
    command = [
        *(sys.executable, "-m", "tests.fuzz", name, str(corpus)),
        f"-dict={corpus.parent / 'words'}",
        *(f"-seed={seed or 1}", f"-max_total_time={max(1, round(seconds))}"),
        *(f"-max_len={LONGEST_INPUT}", f"-timeout={SLOWEST_S}", f"-rss_limit_mb={MEMORY_MB}"),
        *(f"-artifact_prefix={artifacts}/", "-print_final_stats=1", "-verbosity=1"),
    ]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds + SLOWEST_S + START_LIMIT_S,
    )
    return ran.stdout


def _last_lines(output: str) -> str:
    found = output.find("Uncaught Python exception")
    return output[found if found >= 0 else -2000 :][:2000]
