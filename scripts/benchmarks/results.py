"""What was measured: samples, medians and ratios, the table and the JSON. Pure."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BLOBFS = "blobfs"
REFERENCES = ("curl", "rclone off", "rclone full")
"""What blobfs is compared with: the first of these that could do the workload."""

BARE = "bare requests"
"""Who makes the fewest requests that a workload can do with: see bare.py."""

GIB = 2**30


@dataclass(frozen=True)
class Sample:
    """One run of one workload."""

    seconds: float
    requests: int
    bytes: int
    """Over the wire, both ways."""
    cpu_s: float
    """Of the daemon."""
    peak_bytes: int
    """The most memory that the daemon held at once."""
    extra: dict[str, float] = field(default_factory=dict)


@dataclass
class Result:
    """All runs of one workload by one peer on one service."""

    workload: str
    title: str
    service: str
    peer: str
    payload: int
    """Bytes that the workload's programs read or write; 0 where it is not about bytes."""
    goal: float | None
    """The ratio to reach."""
    at_most: dict[str, float] = field(default_factory=dict)
    """What medians of other figures may be."""
    samples: list[Sample] = field(default_factory=list)
    error: str = ""
    """Why there are no samples: the peer cannot do the workload."""

    def median(self, of: str = "seconds") -> float:
        if of == "wire/data":
            return self.median("bytes") / self.payload
        return float(statistics.median(getattr(sample, of) for sample in self.samples))

    @property
    def spread(self) -> tuple[float, float]:
        seconds = [sample.seconds for sample in self.samples]
        return min(seconds), max(seconds)


Key = tuple[str, str]


def by_workload(results: Iterable[Result]) -> dict[Key, list[Result]]:
    groups: dict[Key, list[Result]] = {}
    for result in results:
        groups.setdefault((result.workload, result.service), []).append(result)
    return groups


def ratio(group: Sequence[Result]) -> float | None:
    """How many times faster blobfs is than its reference; None when one of them is missing."""
    done = {result.peer: result.median() for result in group if result.samples}
    reference = next((done[peer] for peer in REFERENCES if peer in done), None)
    if reference is None or BLOBFS not in done:
        return None
    return reference / done[BLOBFS]


def limit(group: Sequence[Result]) -> float | None:
    """How many times faster than the reference the service answers the fewest requests."""
    done = {result.peer: result.median() for result in group if result.samples}
    reference = next((done[peer] for peer in REFERENCES if peer in done), None)
    return None if reference is None or BARE not in done else reference / done[BARE]


def misses(results: Iterable[Result]) -> list[str]:
    """One line for each of blobfs's goals that was not reached."""
    lines = []
    for (workload, service), group in by_workload(results).items():
        goal, reached = group[0].goal, ratio(group)
        if goal is not None and reached is not None and reached < goal:
            line = f"{workload} on {service}: ratio {reached:.2f}, the goal is {goal:g}"
            most = limit(group)
            lines.append(line if most is None else f"{line}; {BARE}: {most:.2f}")
        for result in group:
            if result.peer == BLOBFS and result.samples:
                lines += [
                    f"{workload} on {service}: {of} {result.median(of):g}, the goal is {most:g}"
                    for of, most in result.at_most.items()
                    if result.median(of) > most
                ]
    return lines


_HEAD = (
    *("workload", "service", "by", "median", "spread", "runs", "MiB/s"),
    *("ratio", "requests", "wire", "wire/data", "CPU s", "CPU s/GiB", "peak"),
)
_LEFT = 3


def table(results: Sequence[Result]) -> str:
    """Plain text, one line for each peer; `ratio` stands in blobfs's line."""
    rows: list[tuple[str, ...]] = [_HEAD]
    notes = []
    for group in by_workload(results).values():
        for result in group:
            if result.samples:
                rows.append(_row(result, ratio(group) if result.peer == BLOBFS else None))
                notes += _extras(result)
            else:
                rows.append((result.workload, result.service, result.peer, "—") + ("",) * 10)
                notes.append(f"{result.workload}, {result.service}, {result.peer}: {result.error}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < _LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _row(result: Result, ratio: float | None) -> tuple[str, ...]:
    low, high = result.spread
    seconds, cpu = result.median(), result.median("cpu_s")
    wire, data = result.median("bytes"), result.payload
    return (
        result.workload,
        result.service,
        result.peer,
        _seconds(seconds),
        f"{_seconds(low)}-{_seconds(high)}",
        str(len(result.samples)),
        f"{data / seconds / 2**20:.1f}" if data else "",
        f"{ratio:.2f}" if ratio is not None else "",
        f"{result.median('requests'):.0f}",
        _bytes(wire),
        f"{result.median('wire/data'):.2f}" if data else "",
        f"{cpu:.2f}",
        f"{cpu / data * GIB:.2f}" if data else "",
        _bytes(result.median("peak_bytes")),
    )


def _extras(result: Result) -> list[str]:
    names = result.samples[0].extra
    return [
        f"{result.workload}, {result.service}, {result.peer}: {name} "
        f"{statistics.median(sample.extra[name] for sample in result.samples):.0f}"
        for name in names
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}ms" if seconds < 0.1 else f"{seconds:.2f}s"


def _bytes(count: float) -> str:
    for unit in ("B", "K", "M"):
        if count < 1024:
            return f"{count:.0f}{unit}" if unit == "B" else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.2f}G"


def to_json(machine: dict[str, str], results: Iterable[Result]) -> str:
    document = {"machine": machine, "results": [asdict(result) for result in results]}
    return json.dumps(document, indent=1) + "\n"


def from_json(text: str) -> tuple[dict[str, str], list[Result]]:
    document: dict[str, Any] = json.loads(text)
    results = []
    for fields in document["results"]:
        samples = [Sample(**sample) for sample in fields.pop("samples")]
        results.append(Result(**fields, samples=samples))
    return document["machine"], results
