"""The results as a chart: how many times faster blobfs is than its reference."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from scripts.benchmarks.results import Result, by_workload, ratio

_COLOURS = {
    "azurite": "#1b6ca8",
    "azurite+10ms": "#4fa3d1",
    "azurite+40ms": "#a5d0e8",
    "ceiling": "#e08a2e",
}


def draw(machine: dict[str, str], results: Sequence[Result], paths: Sequence[Path]) -> None:
    """Write the chart to each path, in the format that its suffix names.

    Nothing is written when nothing was compared.
    """
    groups = {key: group for key, group in by_workload(results).items() if ratio(group) is not None}
    if not groups:
        return
    titles = {group[0].workload: group[0].title for group in groups.values()}
    names = list(titles)
    services = [name for name in _COLOURS if any(service == name for _, service in groups)]
    height = 0.8 / max(1, len(services))
    figure = Figure(figsize=(9, 1.5 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    for number, service in enumerate(services):
        found = [(i, ratio(groups.get((name, service), []))) for i, name in enumerate(names)]
        bars = [(i + number * height, value) for i, value in found if value is not None]
        drawn = axes.barh(
            [position for position, _ in bars],
            [value - 1 for _, value in bars],
            height,
            left=1,
            color=_COLOURS[service],
            label=service,
        )
        axes.bar_label(drawn, [f"{value:.1f}x" for _, value in bars], padding=2, fontsize=7)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.axvline(2, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(names))], list(titles.values()))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlabel("times faster than rclone (on the ceiling: than curl); right of 1 is faster")
    axes.set_title(f"blobfs, {machine['cpu']}, {machine['date']}", fontsize=9)
    axes.legend(fontsize=8)
    for path in paths:
        figure.savefig(path, dpi=120)
