"""What a check finds, and who is told."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum

from blobfs.errors import BlobfsError
from blobfs.sas import redact


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice` is what to do, "" when there is nothing to be done."""

    name: str
    state: State
    text: str
    advice: str = ""


class Findings:
    """All findings so far. `beginning` is told the name of each check before it is made, `found`
    each finding."""

    def __init__(
        self,
        beginning: Callable[[str], None] = lambda name: None,
        found: Callable[[Finding], None] = lambda finding: None,
    ) -> None:
        self.all: list[Finding] = []
        self.begin = beginning
        self._found = found

    def add(self, name: str, state: State, text: str, advice: str = "") -> None:
        finding = Finding(name, state, *(" ".join(redact(t).split()) for t in (text, advice)))
        self.all.append(finding)
        self._found(finding)

    def ok(self, name: str, text: str) -> None:
        self.add(name, State.OK, text)

    def skip(self, name: str, why: str) -> None:
        self.add(name, State.SKIPPED, why)

    def warn(self, name: str, text: str, advice: str) -> None:
        self.add(name, State.WARNING, text, advice)

    def wrong(self, name: str, problem: str | BlobfsError, advice: str = "") -> None:
        self.add(name, State.WRONG, str(problem), advice)

    @property
    def is_well(self) -> bool:
        return not any(finding.state is State.WRONG for finding in self.all)

    def as_json(self) -> list[dict[str, str]]:
        return [asdict(finding) for finding in self.all]
