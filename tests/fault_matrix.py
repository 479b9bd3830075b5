"""Every fault done to every call: what each operation must end with, and what must be stored then.

A case runs operations in a directory of its own while one REST call of theirs goes wrong, looks at
what each of them said and how long it took, then, past blobfs, at what is stored, and at last
whether the mount shows just that.
"""

import errno
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from blobfs.fs.store import CLEAN_UP_TIME
from tests.azurite import Azurite
from tests.fault_steps import (
    DIRECTORY,
    LARGE,
    STEPS,
    STEPS_OF,
    Missing,
    State,
    Step,
    Wrong,
    prepare,
    stored,
)
from tests.faults import BLOCK, BLOCK_LIST, CALLS, FAULTS, PUT, Fault, Plan
from tests.kept import opened
from tests.mounts import Mount, mounted
from tests.relay import Act, Asked, Relay
from tests.sdk import AesKek, encrypting, write_key_file

TIMEOUT = 6.0
"""The mount's `timeout`."""

GRACE = 3.0
"""Seconds beyond a deadline that a loaded machine is given."""

EXTRA = {
    **dict.fromkeys(("large", "large over"), LARGE / 1024**2),
    **dict.fromkeys(("rename", "rename over", "rename, tagged", "unlink, open"), CLEAN_UP_TIME),
    **dict.fromkeys(("read", "append"), TIMEOUT),
    "rename a directory": 5 * TIMEOUT,
}
"""Seconds beyond the deadline, as SEMANTICS.md has them: a second for each MiB stored, 10 s for
undoing what failed, a read that the kernel tries again, and for a directory the deadline for each
of a few requests in a row. Append opens, reads and closes."""

_SAID = r" (WARNING|ERROR) "

SETTLE = 15.0
"""Seconds until the mount shows what is stored, and a recovery file is written."""

OPTIONS = (f"timeout={TIMEOUT:g}", "metadata_ttl=0", "list_page=3", "region_size=4K")


class Case(NamedTuple):
    """The fault is done to one request of `call`, at this position among those that the steps
    make; when it `lasts`, to all until the operation is over."""

    call: str
    fault: Fault
    position: str
    lasts: bool

    def __str__(self) -> str:
        how = "from the {} on" if self.lasts else "at the {}"
        return f"{self.call}: {self.fault.name}, {how.format(self.position)}"


def all_cases() -> list[Case]:
    return [
        Case(call, fault, position, lasts)
        for call in CALLS
        for fault in FAULTS
        if call in fault.calls
        for position in ("first", "middle", "last")
        for lasts in (False, True)
    ]


class Ended(NamedTuple):
    step: Step
    directory: str
    code: int
    seconds: float
    was_hit: bool
    said: str = ""


class Ward:
    """A mount behind a relay, and ways past both. `run` may be called by several threads."""

    def __init__(self, azurite: Azurite, container: str, mount: Mount, relay: Relay, kek: AesKek):
        self.mount = mount
        self.longest = 0.0
        self.failures = 0
        self._relay = relay
        self._sdk = encrypting(azurite, container, kek)
        self._raw = azurite.sdk(container)
        self._numbers = itertools.count(1)
        self._plans: dict[str, Plan] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        relay.choose = self._choose

    def _choose(self, asked: Asked) -> Act | None:
        for plan in list(self._plans.values()):
            if plan.is_about(asked):
                return plan.choose(asked)
        return None

    def calls_made(self, *names: str) -> list[str]:
        """The calls that these steps make when nothing goes wrong."""
        _, plan, problems = self._steps(Plan(self._new_directory(), "", None), names)
        assert not problems, problems
        return plan.seen

    def count(self, call: str) -> int:
        """How many requests of `call` its steps make when nothing goes wrong."""
        if call not in self._counts:
            self._counts[call] = self.calls_made(*STEPS_OF[call]).count(call)
        return self._counts[call]

    def run(self, case: Case) -> list[str]:
        """What went wrong that must not."""
        try:
            problems = self._run(case)
        except AssertionError as exc:
            problems = [str(exc)]
        return [f"{case}: {problem}" for problem in problems]

    def _run(self, case: Case) -> list[str]:
        count = self.count(case.call)
        first = {"first": 0, "middle": count // 2, "last": count - 1}[case.position]
        plan = Plan(self._new_directory(), case.call, case.fault, first, case.lasts)
        ended, plan, problems = self._steps(plan, STEPS_OF[case.call])
        if not plan.hits:
            problems.append("the fault was not done")
        for one in ended:
            problems += self._judge(case, one)
        return problems

    def _new_directory(self) -> str:
        with self._lock:
            return f"case-{next(self._numbers):05}"

    def _steps(self, plan: Plan, names: tuple[str, ...]) -> tuple[list[Ended], Plan, list[str]]:
        places = [(STEPS[name], f"{plan.directory}/{n}") for n, name in enumerate(names)]
        self._raw.upload_blob(plan.directory, b"", metadata={"hdi_isfolder": "true"})
        for step, directory in places:
            self._raw.upload_blob(directory, b"", metadata={"hdi_isfolder": "true"})
            prepare(step, self._sdk, self._raw, directory)
        self._plans[plan.directory] = plan
        ended = []
        try:
            for step, directory in places:
                before = plan.hits
                code, seconds, said = self._do(step, self.mount.path / directory)
                deadline = time.monotonic() + SETTLE
                while not code and not plan.has_released():
                    assert time.monotonic() < deadline, f"{step.name} has left something hidden"
                    time.sleep(0.01)
                plan.step_ended()
                ended.append(Ended(step, directory, code, seconds, plan.hits > before, said))
        finally:
            del self._plans[plan.directory]
        problems = [p for one in ended for p in self._compare(plan, one)]
        return ended, plan, problems

    def _do(self, step: Step, path: Path) -> tuple[int, float, str]:
        began = time.monotonic()
        code, said = 0, ""
        try:
            step.act(path)
        except OSError as exc:
            code = exc.errno or -1
        except Missing as exc:
            code, said = errno.ENOENT, f"missing: {exc}"
        except Wrong as exc:
            code, said = -1, f"a wrong answer: {exc}"
        return code, time.monotonic() - began, said

    def _judge(self, case: Case, ended: Ended) -> Iterator[str]:
        """Whether it ended in time, with success or the right errno, and one who failed was told
        of in the log."""
        step, fault = ended.step, case.fault
        self.longest = max(self.longest, ended.seconds)
        limit = TIMEOUT + GRACE + EXTRA.get(step.name, 0.0)
        if ended.seconds > limit:
            yield f"{step.name} took {ended.seconds:.1f} s"
        if not ended.code:
            return
        self.failures += 1
        name = errno.errorcode.get(ended.code, str(ended.code))
        if not ended.was_hit:
            yield f"{step.name}, which was not hit, ended with {name} {ended.said}"
        elif fault.harmless and not case.lasts:
            yield f"{step.name} ended with {name} {ended.said} for what another attempt mends"
        elif ended.code not in fault.errnos:
            yield f"{step.name} ended with {name} {ended.said}"
        elif not fault.is_stale and not any(
            ended.directory.split("/")[0] in line for line in self.mount.log().splitlines()
        ):
            yield f"the log has nothing of {step.name}, which ended with {name}"

    def _compare(self, plan: Plan, ended: Ended) -> Iterator[str]:
        """Whether what is stored is what the operation said, and the mount shows it."""
        step, where = ended.step, ended.directory
        found = self._settled(ended) if ended.was_hit else self._stored(ended)
        kept = {name: value for name, value in found.items() if ".blobfs-conflict-" in name}
        plain = {name: value for name, value in found.items() if name not in kept}
        stale = plan.fault is not None and plan.fault.is_stale
        if not ended.code and not stale:
            if plain != step.after:
                yield f"{step.name} succeeded, and stored is {_brief(plain)}"
        else:
            versions = [*step.before.items(), *step.after.items()]
            if mixture := [item for item in plain.items() if item not in versions]:
                yield f"{step.name}: neither old nor new is {_brief(dict(mixture))}"
            bodies = list(plain.values())
            if lost := [
                v for v in step.before.values() if v in step.after.values() and v not in bodies
            ]:
                yield f"{step.name}: lost is {_brief(dict(enumerate(lost)))}"  # type: ignore[arg-type]
        writes = ("create", "overwrite", "large", "large over")
        if ended.code and step.name in writes and plan.call in (PUT, BLOCK, BLOCK_LIST):
            (wanted,) = step.after.values()
            assert isinstance(wanted, tuple)
            if plain != step.after and wanted[0] not in self._kept(where, kept):
                yield f"{step.name} failed, and its bytes are nowhere"

    def _stored(self, ended: Ended) -> State:
        return stored(ended.step, self._sdk, self._raw, ended.directory)

    def _settled(self, ended: Ended) -> State:
        """What is stored, once the mount shows the same."""
        deadline = time.monotonic() + SETTLE
        while True:
            found = self._stored(ended)
            shown = self._shown(self.mount.path / ended.directory)
            if shown == _as_shown(found):
                return found
            if time.monotonic() > deadline:
                bodies = {name: (body, None) for name, body in shown.items()}
                raise AssertionError(
                    f"{ended.step.name}: stored is {_brief(found)}, shown {_brief(bodies)}"
                )
            time.sleep(0.05)

    def _shown(self, path: Path) -> dict[str, object]:
        shown: dict[str, object] = {}
        for directory, directories, files in os.walk(path):
            below = Path(directory).relative_to(path)
            shown |= {str(below / name): DIRECTORY for name in directories}
            for name in files:
                file = Path(directory, name)
                body = os.readlink(file).encode() if file.is_symlink() else file.read_bytes()
                shown[str(below / name)] = body
        return shown

    def _kept(self, where: str, conflicts: State) -> list[object]:
        """Contents in recovery files and conflict copies; the files are removed."""
        found: list[object] = [value[0] for value in conflicts.values()]  # type: ignore[index]
        deadline = time.monotonic() + SETTLE
        while not found and time.monotonic() < deadline:
            for path in self.mount.spool_dir.glob("*.blobfs-recovery"):
                body, description = opened(path, self.mount.key_file)
                if description["name"].startswith(f"{where}/"):
                    found.append(body)
                    path.unlink()
            time.sleep(0.05)
        return found

    def log_problems(self) -> list[str]:
        """What no fault may lead to."""
        return [
            line
            for line in self.mount.log().splitlines()
            if "a bug in blobfs" in line or "Traceback" in line or " CRITICAL " in line
        ]


def _as_shown(found: State) -> dict[str, object]:
    """What a mount shows of it: above every name are directories, with or without a marker."""
    bodies = {name: value[0] for name, value in found.items()}  # type: ignore[index]
    above = (str(parent) for name in bodies for parent in Path(name).parents)
    return {**dict.fromkeys(set(above) - {"."}, DIRECTORY), **bodies}


def _brief(state: State) -> str:
    return str({name: _brief_value(value) for name, value in sorted(state.items())})


def _brief_value(value: object) -> str:
    body, seen = value  # type: ignore[misc]
    text = f"{len(body)} bytes …{body[-12:]!r}" if isinstance(body, bytes) else str(body)
    return f"{text} {seen}" if seen is not None else text


@contextmanager
def ward(azurite: Azurite, directory: Path) -> Iterator[Ward]:
    """Ends with an unmount that must go well, whatever was done to the mount."""
    container = azurite.new_container()
    kek = AesKek("local:faults", os.urandom(32))
    key_file = write_key_file(directory / "keys.json", kek)
    relay = Relay(azurite)
    try:
        with mounted(relay.service, container, directory, *OPTIONS, key_file=key_file) as mount:
            found = Ward(azurite, container, mount, relay, kek)
            yield found
            if re.search(_SAID, mount.log()):
                mount.expect_log(_SAID)
            assert found.log_problems() == []
    finally:
        relay.close()
