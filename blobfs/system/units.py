"""Units of systemd, and lines of fstab(5), for one mount: with what each takes for its own escaped.

The rules are those of systemd.unit(5), "String escaping for inclusion in unit names" and
"Specifiers", and of getmntent(3).
"""

import re
import string
from dataclasses import dataclass

from blobfs.errors import OptionError
from blobfs.system.files import File
from blobfs.system.layout import LOCAL, Layout

STOP_TIME = "15min"
"""How long systemd waits for what is dirty to be stored, before it kills. The daemon itself ends
when everything is stored, or kept for recovery; see `blobfs recover`."""

# For what stays the same in each unit of a mount.
_ORDER = """\
Documentation=man:mount.blobfs(8)
Wants=network-online.target
After=network-online.target nss-lookup.target
"""


def unit_name(path: str, suffix: str) -> str:
    """What systemd-escape --path makes of `path`, with a suffix such as ".mount"."""
    words = [word for word in path.split("/") if word not in ("", ".")]
    if ".." in words:
        raise OptionError(f"the mount point {path!r} has .. in it: write where it leads to")
    name = "/".join(words)
    return (_escaped(name) if name else "-") + suffix


def _escaped(text: str) -> str:
    plain = set((string.ascii_letters + string.digits + ":_.").encode())
    escaped = "".join(
        chr(byte) if byte in plain and not (byte == ord(".") and index == 0) else f"\\x{byte:02x}"
        for index, byte in enumerate(text.encode(errors="surrogateescape"))
    )
    return escaped.replace("\\x2f", "-")


@dataclass(frozen=True, slots=True)
class Mount:
    """What is mounted where; `options` is the text of one -o."""

    source: str
    mountpoint: str
    options: str
    idle: str = "10min"


def fstab_line(mount: Mount) -> str:
    """With an automount, so that a boot waits for nothing."""
    options = (
        f"{mount.options},_netdev,nofail,x-systemd.automount,"
        f"x-systemd.idle-timeout={mount.idle},x-systemd.mount-timeout={STOP_TIME}"
    )
    fields = map(_fstab_field, (mount.source, mount.mountpoint, "blobfs", options))
    return " ".join((*fields, "0", "0"))


def _fstab_field(text: str) -> str:
    return re.sub(r"[ \t\n\\#]", lambda found: f"\\{ord(found[0]):03o}", text)


def mount_unit(mount: Mount) -> File:
    return File(
        unit_name(mount.mountpoint, ".mount"),
        f"""\
[Unit]
Description=blobfs on {_value(mount.mountpoint)}
{_ORDER}
[Mount]
What={_value(mount.source)}
Where={_value(mount.mountpoint)}
Type=blobfs
Options={_value(f"{mount.options},_netdev")}
# Unmounting waits until everything is stored.
TimeoutSec={STOP_TIME}
UMask=0077
LimitCORE=0

[Install]
WantedBy=remote-fs.target
""",
    )


def automount_unit(mount: Mount) -> File:
    return File(
        unit_name(mount.mountpoint, ".automount"),
        f"""\
[Unit]
Description=blobfs on {_value(mount.mountpoint)}, mounted by the first access
Documentation=man:mount.blobfs(8)

[Automount]
Where={_value(mount.mountpoint)}
TimeoutIdleSec={mount.idle}

[Install]
WantedBy=remote-fs.target
""",
    )


def _value(text: str) -> str:
    """`text` as the value of a setting. A backslash means something at the end of a line only."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise OptionError("a unit of systemd cannot hold a control character")
    if text.endswith("\\") or text != text.strip():
        raise OptionError("a unit of systemd cannot hold blanks or a backslash at an end")
    return text.replace("%", "%%")


def service_template(layout: Layout = LOCAL) -> File:
    """`blobfs@NAME.service`, for the mount described in /etc/blobfs/NAME.conf.

    FUSE leaves out what would give the service a mount namespace of its own (ProtectSystem=,
    PrivateTmp= and the like: the mount would not be seen outside), NoNewPrivileges=no is not
    needed for root, and the network is.
    """
    return File(
        f"{layout.units}/blobfs@.service",
        f"""\
# {layout.mark}
# /etc/blobfs/NAME.conf says what `systemctl enable --now blobfs@NAME` mounts:
#     SOURCE=https://ACCOUNT.blob.core.windows.net/CONTAINER
#     MOUNTPOINT=/mnt/data
#     OPTIONS=allow_other
# and /etc/blobfs/NAME.sas and /etc/blobfs/NAME.keys are its token and keys. Other credentials are
# for a drop-in (systemctl edit blobfs@NAME): empty LoadCredential=, then SetCredentialEncrypted=.
[Unit]
Description=blobfs mount %i
{_ORDER}StartLimitIntervalSec=5min
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile=/etc/blobfs/%i.conf
LoadCredential=sas:/etc/blobfs/%i.sas
LoadCredential=keys:/etc/blobfs/%i.keys
Environment=OPTIONS=rw
ExecStart={layout.programs}/blobfs mount -o foreground,spool_dir=/var/lib/blobfs \\
    -o sas_file=%d/sas,key_file=%d/keys -o ${{OPTIONS}} -- ${{SOURCE}} ${{MOUNTPOINT}}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2s
RestartPreventExitStatus=1
WatchdogSec=2min
TimeoutStartSec=3min
TimeoutStopSec={STOP_TIME}
KillMode=mixed
StateDirectory=blobfs
StateDirectoryMode=0700

# Keys are in its memory: no core dumps.
LimitCORE=0
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_READ_SEARCH
DevicePolicy=closed
DeviceAllow=/dev/fuse rw
KeyringMode=private
LockPersonality=yes
MemoryDenyWriteExecute=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service @mount
SystemCallFilter=~@resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
""",
    )
