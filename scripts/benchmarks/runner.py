"""The rounds: in each, every peer does the workload once, from a fresh start and with cold caches.

A peer that fails is not asked again, and its error stands in its result.
"""

import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from scripts.benchmarks import bare, ceiling, machine, services
from scripts.benchmarks.ceiling import Ceiling, Ceilings
from scripts.benchmarks.peers import Blobfs, Mounted, Peer, Rclone
from scripts.benchmarks.results import BARE, Result, Sample
from scripts.benchmarks.services import Service, Stage
from scripts.benchmarks.sources import Scale, Sources
from scripts.benchmarks.workloads import Run, Workload

STAGE_LIMIT = 12 * 2**30
"""Bytes on disk at which an Azurite that workloads write to makes way for a new one."""


class Runner:
    """Measures, keeps what it needs for that in `root`, and ends it all in the end of its block."""

    def __init__(
        self,
        root: Path,
        scale: Scale,
        *,
        rounds: int,
        budget_s: float,
        limit_s: float,
        mount_options: Sequence[str] = (),
    ) -> None:
        """At least one round; more, up to `rounds`, while they fit into `budget_s`."""
        self._root = root
        self._scale = scale
        self._rounds = rounds
        self._budget_s = budget_s
        self._commands = machine.Commands(limit_s)
        self._sources = Sources(root / "sources", scale)
        self._blobfs = Blobfs(root / "blobfs", *mount_options)
        self._peers: tuple[Peer, ...] = (
            self._blobfs,
            Rclone(root / "rclone-off", "off"),
            Rclone(root / "rclone-full", "full"),
        )
        self._region = ceiling.region_size(mount_options)
        self._numbers = itertools.count(1)
        self._stack = ExitStack()
        self._stage: _FilledStage | None = None
        self._ceilings: Ceilings | None = None

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *exc: object) -> None:
        self._leave_stage()
        self._stack.close()

    def measure(self, workload: Workload, service: str) -> list[Result]:
        """One result for each peer."""
        if service == "ceiling":
            return self._rounds_of(workload, service, self._ceiling_runs(workload))
        runs = {peer.name: self._mounted_run(workload, service, peer) for peer in self._peers}
        if workload.bare is not None:
            runs[BARE] = self._bare_run(workload, service, workload.bare)
        return self._rounds_of(workload, service, runs)

    def _rounds_of(
        self, workload: Workload, service: str, runs: dict[str, Callable[[], Sample]]
    ) -> list[Result]:
        results = {
            peer: Result(
                workload.name,
                workload.title(self._scale),
                service,
                peer,
                workload.payload(self._scale),
                workload.goal_on(service),
                workload.at_most(self._scale),
            )
            for peer in runs
        }
        start = time.monotonic()
        for done in range(1, self._rounds + 1):
            for peer, run in runs.items():
                result = results[peer]
                if result.error:
                    continue
                try:
                    result.samples.append(run())
                except machine.CommandFailed as exc:
                    result.error = str(exc)
                    result.samples.clear()
                    if isinstance(exc, machine.NotInTime):
                        self._leave_stage()  # Azurite, if it hangs, is not to fail the next too
            if (time.monotonic() - start) * (done + 1) / done > self._budget_s:
                break
        return list(results.values())

    # On Azurite

    def _mounted_run(self, workload: Workload, service: str, peer: Peer) -> Callable[[], Sample]:
        def run() -> Sample:
            stage = self._stage_for(workload)
            return self._on(
                stage.stage.service(service),
                peer,
                workload,
                fixture=stage.fixture(peer, workload, next(self._numbers)),
            )

        return run

    def _bare_run(
        self,
        workload: Workload,
        service_name: str,
        transfers: Callable[[bare.Place], list[bare.Transfer]],
    ) -> Callable[[], Sample]:
        def run() -> Sample:
            stage = self._stage_for(workload)
            stage.fixture(self._blobfs, workload, next(self._numbers))
            service = stage.stage.service(service_name)
            target = f"bare-{next(self._numbers)}"
            place = bare.Place(service, self._blobfs.folder, self._sources, target)
            argv = bare.command(
                transfers(place), self._root / "curl.conf", parallel=workload.at_once
            )
            return self._timed(service, argv)

        return run

    def _stage_for(self, workload: Workload) -> "_FilledStage":
        """Workloads with the same fixture share an Azurite, until it takes up too much disk."""
        stage = self._stage
        if stage is None or stage.name != workload.fixture or stage.stored() > STAGE_LIMIT:
            self._leave_stage()
            self._stage = _FilledStage(self._root, workload.fixture, self._sources, self._peers)
        assert self._stage is not None
        return self._stage

    def _leave_stage(self) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    # On the ceiling

    def _ceiling_runs(self, workload: Workload) -> dict[str, Callable[[], Sample]]:
        if self._ceilings is None:
            self._ceilings = self._stack.enter_context(
                ceiling.ceilings(
                    self._root / "ceiling", self._scale, self._blobfs.key_file, self._region
                )
            )
        service = self._ceilings.container(workload.ceiling)
        runs = {"blobfs": lambda: self._on(service, self._blobfs, workload, fixture="")}
        if workload.curl is not None:
            runs["curl"] = lambda: self._curl(service, workload)
        return runs

    def _curl(self, service: Ceiling, workload: Workload) -> Sample:
        assert workload.curl is not None
        return self._timed(service, workload.curl(f"{service.url}/file", service.file))

    def _timed(self, service: Service, argv: Sequence[str | Path]) -> Sample:
        service.start_counting()
        start = time.monotonic()
        self._commands.run(*argv)
        seconds = time.monotonic() - start
        traffic = service.traffic()
        return Sample(seconds, traffic.requests, traffic.bytes, 0, 0)

    # Either way

    def _on(self, service: Service, peer: Peer, workload: Workload, *, fixture: str) -> Sample:
        try:
            with peer.mount(service) as mounted:
                run = Run(
                    mounted.path,
                    mounted.path / fixture,
                    mounted.path / f"new-{next(self._numbers)}",
                    self._sources,
                    self._commands,
                    mounted.pid,
                )
                sample = self._measure(service, workload, run, mounted)
        except machine.CommandFailed as exc:
            raise type(exc)(str(exc).replace(str(self._root), "…")) from exc
        finally:
            self._commands.reap()
        # After the mount's end: what it was still doing belongs to the workload.
        traffic = service.traffic()
        return Sample(
            sample.seconds,
            traffic.requests,
            traffic.bytes,
            sample.cpu_s,
            sample.peak_bytes,
            run.extra,
        )

    def _measure(self, service: Service, workload: Workload, run: Run, mounted: Mounted) -> Sample:
        if workload.before is not None:
            workload.before(run)
        try:
            service.start_counting()
            before = machine.usage(run.pid)
            start = time.monotonic()
            seconds = workload.act(run)
            stored = mounted.wait_until_stored()
            after = machine.usage(run.pid)
        except OSError as exc:
            raise machine.CommandFailed(str(exc)) from exc
        if seconds is None:
            seconds = stored - start
        return Sample(seconds, 0, 0, after.cpu_s - before.cpu_s, after.peak_bytes)


class _FilledStage:
    """An Azurite with the files of one fixture, stored by each peer in its own format."""

    def __init__(self, root: Path, name: str, sources: Sources, peers: Sequence[Peer]) -> None:
        self.name = name
        self._sources = sources
        self._filled: set[tuple[str, str]] = set()
        self._stack = ExitStack()
        folder = Path(tempfile.mkdtemp(prefix="azurite-", dir=root))
        self._stack.callback(shutil.rmtree, folder)
        try:
            self.stage: Stage = self._stack.enter_context(services.stage(folder))
            for peer_folder in {peer.folder for peer in peers}:
                self.stage.make_folder(peer_folder)
        except BaseException:
            self._stack.close()
            raise

    def fixture(self, peer: Peer, workload: Workload, number: int) -> str:
        """The path of the workload's files in the peer's mount; they are stored if need be."""
        if not workload.fixture:
            return ""
        path = f"{workload.fixture}-{number}" if workload.consumes else workload.fixture
        if (peer.folder, path) not in self._filled:
            peer.fill(self.stage.direct, self._sources.tree(workload.fixture), path)
            self._filled.add((peer.folder, path))
        return path

    def stored(self) -> int:
        return self.stage.stored_bytes()

    def close(self) -> None:
        self._stack.close()


def say(line: str) -> None:
    """Progress, beside the table on standard output."""
    print(line, file=sys.stderr, flush=True)
