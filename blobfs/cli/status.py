"""`blobfs status`: what a mount is doing, and its log level."""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from blobfs import logs
from blobfs.cli.terminal import Terminal, duration, size
from blobfs.cli.verbs import Verbs
from blobfs.control import ask, find
from blobfs.errors import NoStatus
from blobfs.sas import redact

INTERVAL = 2.0
"""Seconds between two looks with --watch."""

_EXPIRES_SOON = 3600


def add(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "status",
        help="say what a mount is doing",
        description="Say what a mount is doing: its token and keys, requests, cache, what is not "
        "stored yet, errors, latencies. Only the user who mounted it, and root, are told.",
    )
    verb.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="where it is mounted")
    verb.add_argument("--json", action="store_true", help="one JSON object, for programs")
    verb.add_argument(
        "--watch", action="store_true", help="again every 2 seconds, with rates, until Ctrl-C"
    )
    verb.add_argument(
        "--log-level", choices=logs.LEVELS, help="log from this severity on, until the mount ends"
    )
    verb.set_defaults(run=_status)


def _status(chosen: argparse.Namespace) -> int:
    mount = find(chosen.mountpoint)
    if chosen.log_level:
        reply = _asked(mount, {"do": "log_level", "level": chosen.log_level})
        print(f"log_level: {reply['log_level']} (it was {reply['before']})")
        return 0
    terminal = Terminal()
    before: dict[str, Any] | None = None
    with suppress(KeyboardInterrupt):
        while True:
            report = _asked(mount, {"do": "status"})
            if chosen.json:
                indent = None if chosen.watch else 2
                terminal.print(redact(json.dumps(report, indent=indent)))
            else:
                if chosen.watch:
                    terminal.clear()
                for line in _lines(report, before, terminal):
                    terminal.print(redact(line))
            if not chosen.watch:
                break
            before = report
            time.sleep(INTERVAL)
    return 0


def _asked(mount: Any, request: dict[str, Any]) -> dict[str, Any]:
    reply = ask(mount, request)
    if "error" in reply:
        raise NoStatus(f"{mount.path}: {reply['error']}")
    return reply


def _lines(report: dict[str, Any], before: dict[str, Any] | None, terminal: Terminal) -> list[str]:
    """`before` is the last report, which rates are counted from."""
    access = "read-only" if report["read_only"] else "read and write"
    lines = [
        terminal.paint(f"{report['source']} on {report['mountpoint']}", "bold"),
        f"{access}, for {duration(report['uptime_s'])}, pid {report['pid']}, "
        f"blobfs {report['version']}, log_level {report['log_level']}",
    ]
    lines += [f"token: {_token(token, terminal)}" for token in report["tokens"]]
    skew = report["clock_skew_s"]
    if skew is not None and abs(skew) > 60:
        ahead = "behind" if skew > 0 else "ahead of"
        lines.append(
            terminal.paint(f"clock: {duration(abs(skew))} {ahead} the service's", "yellow")
        )
    lines += [f"key: {line}" for line in _keys(report["keys"])]
    lines += [f"files: {_files(report['files'])}", f"cache: {_cache(report['cache'])}"]
    lines.append(f"bytes: {_bytes(report, before)}")
    flying = report["in_flight"]
    lines.append(f"in flight: {flying['requests']} requests, {flying['uploads']} of them uploads")
    memory = report["memory"]
    lines.append(f"memory: {size(memory['resident'])}, {size(memory['peak'])} at the most")
    requests = [(r["operation"], r["verb"], r["status"], r["count"]) for r in report["requests"]]
    lines += _table(terminal, "requests", ("operation", "verb", "status", "count"), requests)
    quantiles = ("operation", "count", "p50 ms", "p90 ms", "p99 ms")
    for name, key in (("requests' latency", "request_latency_ms"), ("calls", "latency_ms")):
        rows = [
            (kind, entry["count"], entry["p50"], entry["p90"], entry["p99"])
            for kind, entry in report[key].items()
        ]
        lines += _table(terminal, name, quantiles, rows)
    errors = [(error["operation"], error["errno"], error["count"]) for error in report["errors"]]
    return lines + _table(terminal, "errors", ("operation", "errno", "count"), errors)


def _table(
    terminal: Terminal, name: str, header: tuple[str, ...], rows: list[tuple[Any, ...]]
) -> list[str]:
    if not rows:
        return [f"{name}: none"]
    head, *lines = terminal.columns([header, *rows], "  ")
    return [terminal.paint(f"{name}:", "bold"), head, *lines]


def _token(token: dict[str, Any], terminal: Terminal) -> str:
    rights = token["rights"] or f"as the stored access policy {token['policy']} says"
    left = token["expires_in_s"]
    if left is None:
        return f"{token['container']}, rights {rights}, its end is in the stored access policy"
    ends = f"in {duration(left)}" if left > 0 else f"{duration(-left)} ago"
    expiry = f"{'expires' if left > 0 else 'expired'} {token['expires']} ({ends})"
    if left <= _EXPIRES_SOON:
        expiry = terminal.paint(expiry, "yellow" if left > 0 else "red")
    return f"{token['container']}, rights {rights}, {expiry}"


def _keys(keys: dict[str, Any]) -> list[str]:
    wrapping = keys["writes_with"]
    lines = ["none to write with"]
    if wrapping:
        key_id = wrapping["key_id"] or "not known yet"
        lines = [f"writes with {key_id} ({wrapping['algorithm']}, {wrapping['provider']})"]
    return lines + [
        f"{key_id} has opened {count} of the content keys in memory"
        for key_id, count in keys["content_keys"].items()
    ]


def _files(files: dict[str, int]) -> str:
    text = f"{files['open']} open, {files['known']} known, {files['unsaved']} not stored yet"
    if files["unsaved"]:
        text += (
            f" ({size(files['unsaved_bytes'])}, of which {size(files['staged_bytes'])} are staged)"
        )
    if deleting := files.get("deleting"):  # which a daemon of an older version does not tell
        text += f", {deleting} being deleted"
    held = f"{size(files['memory_bytes'])} in memory, {size(files['spool_bytes'])} in the spool"
    return f"{text}; held: {held}"


def _cache(cache: dict[str, int]) -> str:
    asked = cache["hits"] + cache["misses"]
    share = f", {100 * cache['hits'] // asked} % hits" if asked else ""
    return (
        f"{cache['hits']} hits, {cache['misses']} misses{share}; "
        f"{size(cache['bytes'])} of {size(cache['limit'])}"
    )


def _bytes(report: dict[str, Any], before: dict[str, Any] | None) -> str:
    parts = []
    for name, count in report["bytes"].items():
        text = f"{size(count)} {name}"
        if before is not None:
            passed = report["uptime_s"] - before["uptime_s"]
            text += f" ({size((count - before['bytes'][name]) / max(passed, 0.1))}/s)"
        parts.append(text)
    return ", ".join(parts)
