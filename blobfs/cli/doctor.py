"""`blobfs doctor`: what keeps a mount from working, and what to do."""

import argparse
import json
import os
import platform

import trio

from blobfs import __version__
from blobfs.cli.terminal import Terminal
from blobfs.cli.verbs import Verbs, add_options
from blobfs.doctor import (
    Finding,
    Findings,
    Machine,
    State,
    asks_for_others,
    examine_machine,
    examine_source,
)
from blobfs.sas import redact

WELL = 0
UNWELL = 1

_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.WRONG: "red", State.SKIPPED: "bold"}


def add(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "doctor",
        help="say what keeps a mount from working",
        description="Check this machine and, with the SOURCE and options of a mount, everything "
        "that mount needs; say what is wrong and what to do. Nothing is changed, and nothing "
        "secret is printed.",
        epilog="exit status: 0 all is well (there may be warnings), 1 something is wrong",
    )
    verb.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="https://ACCOUNT.blob.core.windows.net/CONTAINER",
    )
    add_options(verb, "as for mount")
    verb.add_argument("--json", action="store_true", help="one JSON object, for a support request")
    verb.set_defaults(run=_doctor)


def _doctor(chosen: argparse.Namespace) -> int:
    terminal = Terminal()
    if chosen.json:
        findings = Findings()
    else:
        findings = Findings(
            lambda name: terminal.progress(f"checking {name} …"),
            lambda finding: _show(finding, terminal),
        )
    machine = Machine(os.geteuid(), os.environ.get("PATH") or os.defpath)
    examine_machine(machine, findings, allow_other=asks_for_others(chosen.options))
    if chosen.source is not None:
        trio.run(examine_source, chosen.source, chosen.options, findings)
    terminal.progress("")
    if chosen.json:
        report = {
            "blobfs": __version__,
            "system": platform.platform(),
            "uid": os.geteuid(),
            "well": findings.is_well,
            "checks": findings.as_json(),
        }
        print(redact(json.dumps(report, indent=2, ensure_ascii=False)))
    return WELL if findings.is_well else UNWELL


def _show(finding: Finding, terminal: Terminal) -> None:
    terminal.progress("")
    state = finding.state.ljust(7) if terminal.is_terminal else finding.state
    terminal.print(
        f"{terminal.paint(state, _COLOURS[finding.state])}  {finding.name}: {finding.text}"
    )
    if finding.advice:
        terminal.print(f"         do: {finding.advice}")
