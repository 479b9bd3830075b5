"""Where the files go, and what they say of themselves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Directories of a system. `mark` is in each file, in a comment: who put it there."""

    programs: str
    helpers: str
    share: str
    zsh: str
    units: str
    mark: str


LOCAL = Layout(
    programs="/usr/local/bin",
    helpers="/sbin",  # mount(8) looks nowhere else
    share="/usr/local/share",
    zsh="/usr/local/share/zsh/site-functions",
    units="/usr/local/lib/systemd/system",
    mark="Made by blobfs install; blobfs uninstall removes it.",
)
"""What an administrator installs: the package manager's part of the system is left alone."""

PACKAGED = Layout(
    programs="/usr/bin",
    helpers="/usr/sbin",  # where /sbin leads to; dpkg is to know the files by their own names
    share="/usr/share",
    zsh="/usr/share/zsh/vendor-completions",
    units="/lib/systemd/system",
    mark="Part of the package blobfs.",
)
"""What a Debian package holds."""
