"""What users build, copy, log and keep in databases, as root and as an ordinary user.

Whole programs beyond those of `tests/test_tools.py`, and several processes at once.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import PLAINTEXT_MARKER
from tests.owner import CommandFailed, Place, snapshot

pytestmark = pytest.mark.mount

MARKER = PLAINTEXT_MARKER.decode()

# For what is no different for root.
ordinary = pytest.mark.parametrize("shared_mount", [65534], indirect=True, ids=["nobody"])

# --- building a C project --------------------------------------------------------------------

PARTS = [f"part{n}" for n in range(6)]

CONFIGURE = """#!/bin/sh
set -e
echo 'int main(void) { return 0; }' > conftest.c
${CC:-cc} -o conftest conftest.c
./conftest
rm -f conftest conftest.c
printf '#define GREETING "%s"\\n' "$1" > config.h
sed "s|@CC@|${CC:-cc}|" Makefile.in > Makefile
"""

MAKEFILE = f"""
CC = @CC@
OBJECTS = main.o {" ".join(f"{part}.o" for part in PARTS)}
program: $(OBJECTS)
\t$(CC) -o $@ $(OBJECTS)
%.o: %.c config.h
\t$(CC) -O0 -MMD -c -o $@ $<
-include $(OBJECTS:.o=.d)
clean:
\trm -f program *.o *.d
"""


def write_sources(directory: Path) -> None:
    """A main program and parts, each with its header, as a release has them."""
    directory.mkdir()
    for number, part in enumerate(PARTS):
        (directory / f"{part}.h").write_text(f"int {part}(void);\n")
        (directory / f"{part}.c").write_text(
            f'#include "{part}.h"\nint {part}(void) {{ return 1 << {number}; }}\n'
        )
    includes = "".join(f'#include "{part}.h"\n' for part in PARTS)
    total = " + ".join(f"{part}()" for part in PARTS)
    (directory / "main.c").write_text(
        f'#include <stdio.h>\n#include "config.h"\n{includes}'
        f'int main(void) {{ printf("%s %d\\n", GREETING, {total}); return 0; }}\n'
    )
    (directory / "Makefile.in").write_text(MAKEFILE)
    (directory / "configure").write_text(CONFIGURE)
    (directory / "configure").chmod(0o755)


@pytest.fixture
def built(place: Place) -> Path:
    """The project, unpacked from a tarball, configured and built in the mount."""
    place.act(lambda: write_sources(place.local / "hello-1.0"))
    place.sh(f"tar -C {place.local} -czf hello.tar.gz hello-1.0; tar -xzf hello.tar.gz")
    place.sh(f"cd hello-1.0; ./configure '{MARKER}'; make -s -j2")
    return place.path / "hello-1.0"


def compiled(output: str) -> set[str]:
    """The object files that a make has made."""
    words = [line.split() for line in output.splitlines() if " -c " in line]
    return {line[line.index("-o") + 1] for line in words}


@ordinary
def test_a_c_project_is_built_once(place: Place, built: Path) -> None:
    assert place.run(built / "program") == f"{MARKER} 63\n"
    assert place.run("make", "-C", built, "-q") == ""  # there is nothing to do
    place.mount.remount()
    assert place.run(built / "program") == f"{MARKER} 63\n"
    assert place.run("make", "-C", built, "-q") == ""


@ordinary
def test_make_builds_again_just_what_a_change_concerns(place: Place, built: Path) -> None:
    place.sh(f"cd {built}; touch -d '+2 seconds' part3.h")  # later than all, whatever the clock
    made = place.run("make", "-C", built, "-j2")
    assert compiled(made) == {"main.o", "part3.o"}
    made = place.sh(f"cd {built}; make -s clean; make -j2; ar rcs libparts.a part?.o")
    assert compiled(made) == {"main.o", *(f"{part}.o" for part in PARTS)}
    place.sh(f"cd {built}; cc -o linked main.o -L. -lparts")
    assert place.run(built / "linked") == f"{MARKER} 63\n"


# --- rsync with everything -------------------------------------------------------------------


@pytest.fixture
def tree(place: Place) -> Path:
    """Files, links, empty directories, odd modes and extended attributes, outside of the mount."""
    place.sh(
        f"cd {place.local}; mkdir -p tree/a/b/c tree/empty tree/d; cd tree;"
        f"echo '{MARKER}' > a/text; seq 1 30000 > a/b/numbers; : > a/b/c/nothing; echo x > d/x;"
        "ln -s ../a/text d/link; ln -s nowhere d/dangling; mkfifo d/pipe;"
        "chmod 600 a/text; chmod 2750 a/b; chmod 444 a/b/c/nothing; chmod 1777 empty;"
        "setfattr -n user.comment -v 'of a file' a/text;"
        "setfattr -n user.binary -v 0x00ff0a a/b/numbers;"
        "setfattr -n user.comment -v 'of a directory' a/b"
    )
    if place.user is None:
        place.sh(f"cd {place.local}/tree; chown -R 1234:5678 d; chown -h 99:98 d/link")
    return place.local / "tree"


def rsync(place: Place, source: Path, target: Path, *options: str) -> list[str]:
    """The itemized changes of one run."""
    command = ["rsync", "-aHAX", "--delete", "--modify-window=-1", "--itemize-changes", *options]
    return place.run(*command, f"{source}/", f"{target}/").splitlines()


def xattrs(place: Place, root: Path) -> str:
    return place.sh(f"cd {root}; find . ! -type l ! -type p | sort | xargs getfattr -d -e hex")


def test_rsync_with_all_attributes_goes_both_ways_until_nothing_differs(
    place: Place, tree: Path
) -> None:
    copy, back = place.path / "copy", place.local / "back"
    rsync(place, tree, copy)
    assert rsync(place, tree, copy, "--dry-run") == []
    place.mount.remount()
    assert rsync(place, tree, copy, "--dry-run", "--checksum") == []
    rsync(place, copy, back)
    assert rsync(place, copy, back, "--dry-run", "--checksum") == []
    assert rsync(place, tree, back, "--dry-run", "--checksum") == []
    assert place.act(lambda: snapshot(back)) == place.act(lambda: snapshot(tree))
    assert xattrs(place, back) == xattrs(place, tree)


def test_rsync_deletes_and_changes_what_did_at_the_other_side(place: Place, tree: Path) -> None:
    copy = place.path / "copy"
    rsync(place, tree, copy)
    place.sh(
        f"cd {tree}; rm -r a/b/c d/link; echo more >> a/text; mkdir d/new; echo y > d/new/y;"
        "setfattr -x user.comment a/b; setfattr -n user.comment -v changed a/text; chmod 640 d/x"
    )
    changed = {line.split()[-1] for line in rsync(place, tree, copy)}
    assert changed >= {"a/b/c/", "a/b/c/nothing", "d/link", "a/text", "d/new/y", "a/b/", "d/x"}
    assert rsync(place, tree, copy, "--dry-run", "--checksum") == []
    assert place.act(lambda: snapshot(copy)) == place.act(lambda: snapshot(tree))
    place.sh(f"cd {copy}; rm d/x; echo z > a/b/z; setfattr -n user.new -v 1 a/b/numbers")
    rsync(place, copy, tree)
    assert rsync(place, copy, tree, "--dry-run", "--checksum") == []
    assert place.act(lambda: snapshot(tree)) == place.act(lambda: snapshot(copy))


def test_tar_keeps_extended_attributes(place: Place, tree: Path) -> None:
    place.sh(
        f"tar --xattrs -C {tree} -cf in.tar .; mkdir copy; tar --xattrs -C copy -xpf in.tar;"
        f"tar --xattrs -C copy -cf out.tar .; mkdir {place.local}/back;"
        f"tar --xattrs -C {place.local}/back -xpf out.tar"
    )
    assert xattrs(place, place.local / "back") == xattrs(place, tree)
    assert place.act(lambda: snapshot(place.path / "copy"))["a/b"][0] == "drwxr-s---"


# --- finding, and files with holes -----------------------------------------------------------


@ordinary
def test_find_knows_what_is_newer(place: Place) -> None:
    place.sh(
        "touch -d '2020-01-01 00:00:00.000000001' old;"
        "touch -d '2020-01-01 00:00:00.000000002' mid;"
        "touch -d '2020-01-01 00:00:01' new; touch now"
    )
    assert place.sh("find . -type f -newer mid | sort").split() == ["./new", "./now"]
    assert place.sh("find . -type f ! -newer mid | sort").split() == ["./mid", "./old"]
    assert place.sh("find . -type f -newermt '2021-01-01'").split() == ["./now"]


@ordinary
def test_a_file_with_holes_is_copied_both_ways(place: Place) -> None:
    source = place.local / "holes"
    place.sh(
        f"truncate -s 3M {source}; for at in 0 300000 2000000; do "
        f"echo '{MARKER}' | dd of={source} bs=1 seek=$at conv=notrunc status=none; done"
    )
    place.sh(f"cp --sparse=always {source} in; cp --sparse=always in {place.local}/out")
    place.mount.remount()
    place.run("cmp", source, "in")
    place.run("cmp", source, place.local / "out")
    assert int(place.run("stat", "-c", "%b", place.local / "out")) < 2048  # of 512 bytes


# --- several processes at once ---------------------------------------------------------------


def at_once(place: Place, processes: int, script: str) -> None:
    """Run the script in so many processes, which know their number from 1 as `$0`."""
    place.run(
        "sh",
        "-euc",
        'pids=; for number in $(seq "$1"); do sh -euc "$0" "$number" & pids="$pids $!"; done;'
        "for pid in $pids; do wait $pid; done",
        script,
        str(processes),
    )


@ordinary
def test_four_processes_append_and_no_line_is_lost(place: Place) -> None:
    at_once(place, 4, 'exec >> log; for n in $(seq 250); do echo "$0 $n"; done')
    lines = place.run("cat", "log").splitlines()
    assert len(lines) == 1000
    for writer in "1234":  # each one's lines, in the order in which it wrote them
        own = [line for line in lines if line.startswith(writer)]
        assert own == [f"{writer} {n}" for n in range(1, 251)]
    place.mount.remount()
    assert place.run("cat", "log").splitlines() == lines


@ordinary
def test_four_processes_that_open_and_close_lose_no_line(place: Place) -> None:
    at_once(place, 4, 'for n in $(seq 15); do echo "$0 $n" >> log; done')
    expected = sorted(f"{writer} {n}" for writer in range(1, 5) for n in range(1, 16))
    assert sorted(place.run("cat", "log").splitlines()) == expected
    place.mount.remount()
    assert sorted(place.run("cat", "log").splitlines()) == expected


@ordinary
def test_flock_makes_one_step_of_read_and_write(place: Place) -> None:
    """Without the lock the processes would lose one another's counts."""
    place.sh("echo 0 > count")
    count = "read n < count; echo $((n + 1)) > count"
    at_once(place, 3, f"for n in $(seq 10); do flock lock sh -euc '{count}'; done")
    assert place.run("cat", "count") == "30\n"


@ordinary
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_two_processes_write_to_one_database(place: Place, journal: str) -> None:
    place.run(
        "sqlite3",
        "d.db",
        text=f"PRAGMA journal_mode={journal};"
        "CREATE TABLE t (writer, n, text, PRIMARY KEY (writer, n)); CREATE INDEX i ON t (text);",
    )
    row = f"INSERT INTO t VALUES ($0, $n, '{MARKER}' || hex(randomblob(500)));"
    rows = f'for n in $(seq 12); do echo "{row}"; done'
    at_once(place, 2, f"{rows} | sqlite3 -bail -cmd '.timeout 30000' d.db")
    query = "PRAGMA integrity_check; SELECT writer, count(*) FROM t GROUP BY writer;"
    assert place.run("sqlite3", "d.db", text=query) == "ok\n1|12\n2|12\n"
    place.mount.remount()
    assert place.run("sqlite3", "d.db", text=query) == "ok\n1|12\n2|12\n"


@ordinary
def test_a_database_writer_that_is_killed_leaves_what_it_committed(place: Place) -> None:
    place.run("sqlite3", "d.db", "CREATE TABLE t (n); INSERT INTO t VALUES (1);")
    with pytest.raises(CommandFailed):
        place.run(
            "sqlite3",
            "d.db",
            text="PRAGMA cache_size = 2; BEGIN;\n"
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
            f"INSERT INTO t SELECT '{MARKER}' || i FROM n;\n"
            ".shell kill -9 $PPID\n",
        )
    assert place.sh("[ -s d.db-journal ] && echo hot") == "hot\n"
    query = "PRAGMA integrity_check; SELECT * FROM t;"
    assert place.run("sqlite3", "d.db", text=query) == "ok\n1\n"


# --- git -------------------------------------------------------------------------------------


@pytest.fixture
def repository(place: Place) -> Iterator[Path]:
    """A history of a few branches, in the mount."""
    numbers = [str(n) for n in random.Random(7).sample(range(10**6), 3000)]
    place.act(lambda: (place.local / "numbers").write_text("\n".join(numbers)))
    place.sh(
        f"git init -q -b main repo; cd repo; git config gc.auto 0; cp {place.local}/numbers .;"
        f"mkdir -p src/deep; echo '{MARKER}' > src/deep/file; echo x > src/x; git add -A;"
        "git commit -qm one; git checkout -qb side; sed -i 's/1/one/' numbers; git rm -qr src/deep;"
        "git commit -qam two; git checkout -q main; mkdir docs; echo d > docs/d; git add -A;"
        "git commit -qm three"
    )
    yield place.path / "repo"
    assert place.sh("cd repo; git fsck --full --strict --no-dangling; git status --porcelain") == ""


@ordinary
def test_git_changes_between_branches_and_worktrees(place: Place, repository: Path) -> None:
    place.sh(f"cd {repository}; git worktree add -q ../other side")
    for branch, directory, files in (
        ("side", "other", "numbers src/x"),
        ("main", "repo", "docs/d numbers src/deep/file src/x"),
    ):
        place.sh(f"cd {directory}; git checkout -q --detach HEAD; git checkout -q main~")
        place.sh(f"cd {directory}; git checkout -q {branch}; git diff --exit-code")
        assert place.sh(f"cd {directory}; find * -type f | sort").split() == files.split()
    place.sh("cd other; echo y > y; git add y; git commit -qm four")
    place.sh(f"cd {repository}; git worktree remove ../other; git merge -q -m five side")
    assert place.sh("[ ! -e other ]; cat repo/y") == "y\n"
    assert place.sh(f"cd {repository}; git log --format=%s --first-parent").split() == [
        "five",
        "three",
        "one",
    ]


@ordinary
def test_git_gc_packs_and_loses_nothing(place: Place, repository: Path) -> None:
    objects = place.sh(f"cd {repository}; git rev-list --objects --all | sort")
    place.sh(f"cd {repository}; git gc -q --prune=now --aggressive")
    assert "count: 0\n" in place.sh(f"cd {repository}; git count-objects -v")
    place.mount.remount()
    assert place.sh(f"cd {repository}; git rev-list --objects --all | sort") == objects
