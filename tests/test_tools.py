"""Ordinary programs on a mount, as root and as an ordinary user: what they are used for works."""

import random
import re
from pathlib import Path

import pytest

from tests.mounts import PLAINTEXT_MARKER
from tests.owner import CommandFailed, Place, snapshot

pytestmark = pytest.mark.mount

MARKER = PLAINTEXT_MARKER.decode()

# A tree with what copying programs get wrong: modes, owners, times in nanoseconds, links, empty
# directories and files, odd names.
TREE = f"""
mkdir -p tree/docs/deep/er 'tree/with space/ünï' tree/empty tree/private
echo '{MARKER} read me' > tree/docs/readme.txt
seq 1 50000 > tree/docs/numbers
: > tree/docs/nothing
echo deep > tree/docs/deep/er/file
echo '100%' > 'tree/with space/ünï/100% #1?+.txt'
printf '#!/bin/sh\\necho it runs\\n' > tree/script
chmod 755 tree/script
chmod 600 tree/docs/numbers
chmod 444 tree/docs/nothing
chmod 700 tree/private
ln -s docs/readme.txt tree/link
ln -s ../nowhere tree/docs/dangling
find tree -exec touch -h -d '2002-02-02 02:02:02.222222222' {{}} +
touch -h -d '2003-02-01 04:05:06.123456789' tree/link
touch -d '2001-02-03 04:05:06.987654321' tree/docs/readme.txt
touch -d '2011-12-13 14:15:16.000000001' tree/docs/deep/er tree/docs/deep tree/empty tree
"""


@pytest.fixture
def tree(place: Place) -> Path:
    """The tree, outside of the mount."""
    place.sh(f"cd {place.local}; {TREE}")
    if place.user is None:
        place.sh(f"chown -h 1234:5678 {place.local}/tree/docs/readme.txt {place.local}/tree/link")
        # chown clears nothing here but moves no mtime either
    return place.local / "tree"


def assert_same(place: Place, tree: Path, copy: Path) -> None:
    """Equal for `diff -r` and in every attribute, now and when nothing is cached any more."""
    expected = place.act(lambda: snapshot(tree))
    place.run("diff", "-r", "--no-dereference", tree, copy)
    assert place.act(lambda: snapshot(copy)) == expected
    place.mount.remount()
    assert place.act(lambda: snapshot(copy)) == expected
    place.run("diff", "-r", "--no-dereference", tree, copy)


# --- copying ---------------------------------------------------------------------------------


def test_cp_a_copies_a_tree_with_all_its_attributes(place: Place, tree: Path) -> None:
    place.run("cp", "-a", tree, "copy")
    assert_same(place, tree, place.path / "copy")


def test_cp_a_copies_within_the_mount_and_out_of_it(place: Place, tree: Path) -> None:
    place.run("cp", "-a", tree, "first")
    place.run("cp", "-a", "first", "second")
    place.run("cp", "-a", "second", place.local / "out")
    expected = place.act(lambda: snapshot(tree))
    assert place.act(lambda: snapshot(place.local / "out")) == expected


def rsync(place: Place, *arguments: str | Path) -> list[str]:
    """What an rsync changed: its itemized lines."""
    return place.run("rsync", "-a", "--itemize-changes", *arguments).splitlines()


def test_a_second_rsync_transfers_nothing(place: Place, tree: Path) -> None:
    assert rsync(place, f"{tree}/", "copy/") != []
    assert rsync(place, f"{tree}/", "copy/") == []
    assert_same(place, tree, place.path / "copy")  # and with that a remount
    assert rsync(place, f"{tree}/", "copy/") == []
    nanoseconds = "--modify-window=-1"
    assert rsync(place, nanoseconds, f"{tree}/", "copy/") == []
    assert rsync(place, nanoseconds, "copy/", f"{tree}/") == []


def test_rsync_transfers_just_what_changed(place: Place, tree: Path) -> None:
    rsync(place, f"{tree}/", "copy/")
    place.sh(f"echo more >> {tree}/docs/readme.txt; chmod 711 {tree}/script; rm {tree}/link")
    changes = rsync(place, "--delete", "--modify-window=-1", f"{tree}/", "copy/")
    changed = {line.split()[-1] for line in changes if not line.startswith(".d..t")}
    assert changed == {"docs/readme.txt", "script", "link"}
    assert rsync(place, "--delete", f"{tree}/", "copy/") == []
    assert place.act(lambda: snapshot(place.path / "copy")) == place.act(lambda: snapshot(tree))


def test_rsync_updates_in_place_and_by_delta(place: Place, tree: Path) -> None:
    rsync(place, f"{tree}/", "copy/")
    inode = place.run("stat", "-c", "%i", "copy/docs/numbers")
    place.sh(f"echo 12345 | dd of={tree}/docs/numbers bs=1 seek=100000 conv=notrunc status=none")
    options = "--inplace", "--no-whole-file", "--checksum", "--stats"
    said = "\n".join(rsync(place, *options, f"{tree}/", "copy/"))
    assert re.search(r"^Matched data: [1-9]", said, re.MULTILINE)
    assert place.run("stat", "-c", "%i", "copy/docs/numbers") == inode
    place.run("cmp", tree / "docs/numbers", "copy/docs/numbers")


def test_tar_into_the_mount_and_out_of_it(place: Place, tree: Path) -> None:
    place.run("tar", "-C", tree.parent, "-czf", "archive.tgz", "tree")
    place.sh("mkdir out; tar -C out -xpzf archive.tgz")
    # GNU tar's default format keeps whole seconds
    seconds = {k: (*v[:2], v[2] // 10**9, v[3]) for k, v in _snapshot(place, tree).items()}
    copied = _snapshot(place, place.path / "out/tree").items()
    assert {k: (*v[:2], v[2] // 10**9, v[3]) for k, v in copied} == seconds
    assert place.run("tar", "-dzf", "archive.tgz", "-C", tree.parent) == ""


def test_tar_in_pax_format_keeps_nanoseconds(place: Place, tree: Path) -> None:
    place.sh(f"tar --format=pax -C {tree} -cf - . | (mkdir out; tar -C out -xpf -)")
    assert_same(place, tree, place.path / "out")


def _snapshot(place: Place, root: Path) -> dict[str, tuple[object, ...]]:
    return place.act(lambda: snapshot(root))


def test_a_large_file_goes_through_pipes_unchanged(place: Place) -> None:
    data = PLAINTEXT_MARKER + random.Random(3).randbytes(10 * 1024 * 1024 + 1)
    place.act(lambda: (place.local / "source").write_bytes(data))
    script = f"cat {place.local}/source | gzip -1 | tee copy.gz | gzip -d > copy"
    place.sh(f"{script}; cmp copy {place.local}/source; gzip -t copy.gz")
    place.mount.remount()
    place.run("cmp", "copy", place.local / "source")
    place.sh(f"gzip -dc copy.gz | cmp - {place.local}/source")


def test_split_and_cat_put_a_file_together_again(place: Place, tree: Path) -> None:
    place.run("split", "-b", "50000", tree / "docs/numbers", "part-")
    place.sh("cat part-* > whole; rm part-*")
    place.run("cmp", "whole", tree / "docs/numbers")
    assert place.run("ls") == "whole\n"


# --- moving and removing ---------------------------------------------------------------------


def test_mv_within_the_mount_keeps_everything(place: Place, tree: Path) -> None:
    place.run("cp", "-a", tree, "one")
    place.sh("mv one two; mkdir three; mv two three/")
    place.sh("mv three/two/script three/two/renamed; mv three/two/renamed three/two/script")
    place.run("touch", "-r", tree, "three/two")  # its own time moved with its entries
    assert_same(place, tree, place.path / "three/two")


def test_mv_into_the_mount_and_out_of_it(place: Place, tree: Path) -> None:
    expected = _snapshot(place, tree)
    place.run("mv", tree, "moved")
    assert _snapshot(place, place.path / "moved") == expected
    place.run("mv", "moved", tree)
    assert _snapshot(place, tree) == expected
    assert place.run("ls", "-A") == ""


def test_mv_replaces_a_file_unless_told_not_to(place: Place) -> None:
    place.sh("echo a > a; echo b > b; mv -n a b; mv a c; mv -f c b")
    assert place.sh("ls; cat b") == "b\na\n"


def test_rm_r_removes_a_tree(place: Place, tree: Path) -> None:
    place.run("cp", "-a", tree, "copy")
    place.run("rm", "-r", "copy")
    assert place.run("ls", "-A") == ""
    place.mount.remount()
    assert place.run("ls", "-A") == ""


def test_rmdir_refuses_what_is_not_empty(place: Place) -> None:
    place.sh("mkdir -p a/b; touch a/b/file")
    with pytest.raises(CommandFailed, match="Directory not empty"):
        place.run("rmdir", "a/b")
    place.sh("rm a/b/file; rmdir -p a/b")
    assert place.run("ls", "-A") == ""


def test_find_sees_the_tree_and_deletes_it(place: Place, tree: Path) -> None:
    place.run("cp", "-a", tree, "tree")
    outside = place.sh(
        f"cd {tree.parent}; find tree -printf '%y %m %s %T@ %p %l\\n' | grep -v ^d | sort"
    )
    assert place.sh("find tree -printf '%y %m %s %T@ %p %l\\n' | grep -v ^d | sort") == outside
    assert place.sh("find tree -newer tree/docs/readme.txt -name script") == "tree/script\n"
    place.run("find", "tree", "-delete")
    assert place.run("ls", "-A") == ""


# --- changing files --------------------------------------------------------------------------


def test_dd_changes_the_middle_of_a_file(place: Place) -> None:
    data = PLAINTEXT_MARKER + random.Random(4).randbytes(400_000)
    place.act(lambda: (place.local / "file").write_bytes(data))
    place.sh(f"cp {place.local}/file file")
    for target in ("file", place.local / "file"):
        place.sh(
            f"echo changed | dd of='{target}' bs=1 seek=200000 conv=notrunc status=none;"
            f"dd if=/dev/zero of='{target}' bs=4096 seek=40 count=3 conv=notrunc status=none;"
            f"dd if=/dev/zero of='{target}' bs=1000 seek=500 count=1 conv=notrunc status=none"
        )
    place.run("cmp", "file", place.local / "file")
    place.mount.remount()
    place.run("cmp", "file", place.local / "file")


def test_truncate_cuts_and_grows(place: Place) -> None:
    place.sh("seq 1 100000 > file; truncate -s 100 file; truncate -s +4M file")
    assert place.sh("stat -c %s file; head -c 100 file | tail -n 1").split() == ["4194404", "3"]
    assert place.sh("tail -c +101 file | tr -d '\\0' | wc -c") == "0\n"
    place.sh(
        "truncate -s 0 file; [ ! -s file ]; truncate -s 20M file; cp --sparse=always file copy"
    )
    assert place.sh("stat -c %s file copy; cmp file copy") == f"{20 * 2**20}\n" * 2


def test_the_shell_appends(place: Place) -> None:
    place.sh("for n in 1 2 3 4 5; do echo line $n >> log; done")
    assert place.run("cat", "log") == "".join(f"line {n}\n" for n in range(1, 6))


def test_sed_sort_and_patch_edit_in_place(place: Place) -> None:
    place.sh("seq 1 1000 > file; cp file before; sed -i s/^500$/changed/ file; sort -o file file")
    place.sh("sort before > sorted; diff -u sorted file > change || true; patch -s sorted change")
    place.run("cmp", "sorted", "file")
    assert place.sh("grep -c changed file") == "1\n"


def test_an_editor_saves_by_renaming_over(place: Place) -> None:
    place.sh("echo old > file; chmod 640 file")
    place.sh("echo new > .tmp; sync .tmp; chmod 640 .tmp; mv file file~; mv .tmp file")
    assert place.sh("cat file file~; stat -c %A file") == "new\nold\n-rw-r-----\n"


@pytest.mark.parametrize("way", ["yes", "no", "auto"])
def test_vim_saves(place: Place, way: str) -> None:
    place.sh(f"echo '{MARKER} old' > file; chmod 640 file")
    # fmt: off
    place.run(
        "vim.tiny", "-u", "NONE", "-N", "-es",
        "-c", f"set backup writebackup backupskip= fsync backupcopy={way}",
        "-c", "s/old/new/", "-c", "wq", "file",
    )
    # fmt: on
    assert place.run("cat", "file") == f"{MARKER} new\n"
    assert place.run("cat", "file~") == f"{MARKER} old\n"
    assert place.run("ls", "-A") == "file\nfile~\n"
    assert place.sh("stat -c %A file") == "-rw-r-----\n"


def test_flock_keeps_a_second_process_out(place: Place) -> None:
    with pytest.raises(CommandFailed, match="ended with 7"):
        place.sh("flock lock flock -n -E 7 lock true")
    place.sh("flock lock true; flock -n lock true")


# --- git -------------------------------------------------------------------------------------


def test_git_works_in_a_mount(place: Place, tree: Path) -> None:
    place.sh(
        f"git init -q -b main repo; cp -a {tree}/. repo/; cd repo; git add -A; git commit -qm one;"
        "echo more >> docs/readme.txt; git mv script run; git commit -qam two;"
        "git checkout -qb side HEAD~; echo side > side; git add side; git commit -qm three;"
        "git checkout -q main; git merge -q -m merge side; git tag v1"
    )
    assert place.run("git", "-C", "repo", "status", "--porcelain") == ""
    place.sh("git -C repo gc -q --prune=now; git -C repo fsck --strict --no-dangling")
    place.mount.remount()
    assert place.run("git", "-C", "repo", "status", "--porcelain") == ""
    place.sh("git -C repo fsck --strict --no-dangling")
    assert place.run("git", "-C", "repo", "log", "--format=%s", "--first-parent").split() == [
        "merge",
        "two",
        "one",
    ]


def test_git_clones_within_a_mount(place: Place, tree: Path) -> None:
    place.sh(
        f"git init -q -b main repo; cp -a {tree}/. repo/; cd repo; git add -A; git commit -qm one;"
        "cd ..; git clone -q --no-local repo clone; git clone -q --bare repo bare.git;"
        "cd clone; echo more > new; git add new; git commit -qm two; git push -q ../bare.git main"
    )
    assert place.run("git", "-C", "clone", "status", "--porcelain") == ""
    assert (
        place.sh("git -C bare.git log --format=%s; git -C bare.git fsck --strict") == "two\none\n"
    )


# --- sqlite ----------------------------------------------------------------------------------

ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_database_in_the_mount_keeps_its_integrity(place: Place, journal: str) -> None:
    script = f"""
        PRAGMA journal_mode = {journal};
        CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT);
        CREATE INDEX by_text ON t (text);
        INSERT INTO t {ROWS} SELECT i, '{MARKER} row ' || i FROM n;
        BEGIN; UPDATE t SET text = 'changed' WHERE id % 3 = 0; COMMIT;
        BEGIN; DELETE FROM t; ROLLBACK;
        DELETE FROM t WHERE id % 5 = 0;
        VACUUM;
    """
    assert place.run("sqlite3", "-bail", "data.db", text=script) == f"{journal}\n"
    place.mount.remount()
    query = "PRAGMA integrity_check; SELECT count(*), sum(text = 'changed') FROM t;"
    assert place.run("sqlite3", "data.db", text=query) == "ok\n1600|533\n"


def test_two_connections_in_wal_mode_see_each_others_commits(place: Place) -> None:
    place.run("sqlite3", "d.db", text="PRAGMA journal_mode=wal; CREATE TABLE t (i);")
    place.run(
        "sqlite3",
        "d.db",
        text="INSERT INTO t VALUES (1);\n"
        ".shell sqlite3 d.db 'INSERT INTO t VALUES (2); SELECT count(*) FROM t' > seen\n"
        "INSERT INTO t SELECT count(*) FROM t;\n",
    )
    assert place.run("cat", "seen") == "2\n"
    assert (
        place.run("sqlite3", "d.db", "SELECT i FROM t; PRAGMA integrity_check") == "1\n2\n2\nok\n"
    )


# --- attributes and the mount itself ---------------------------------------------------------


def test_chmod_chown_and_touch(place: Place, tree: Path) -> None:
    place.run("cp", "-a", tree, "copy")
    script = "chmod -R u+rwX,go-w . ; touch -d '1999-12-31 23:59:59.999999999' script"
    if place.user is None:
        script += "; chown -R 4321:8765 docs; chmod 6755 script"
    for directory in (place.path / "copy", tree):
        place.sh(f"cd {directory}; {script}")
    assert_same(place, tree, place.path / "copy")


def test_setfattr_and_getfattr(place: Place, tree: Path) -> None:
    place.sh("echo x > file; setfattr -n user.comment -v 'a comment' file")
    place.sh("setfattr -n user.azure.content_type -v text/plain file")
    place.sh("cp --preserve=all file copy; mv copy moved")
    for name in ("file", "moved"):
        shown = place.run("getfattr", "-d", name)
        assert 'user.comment="a comment"' in shown
        assert 'user.azure.content_type="text/plain"' in shown
    place.sh("setfattr -x user.comment file")
    assert "comment" not in place.run("getfattr", "-d", "file")
    with pytest.raises(CommandFailed, match="Operation not supported"):
        place.sh("setfattr -n system.other -v x file")


def test_ln_is_refused_as_not_supported(place: Place) -> None:
    with pytest.raises(CommandFailed, match="Operation not supported"):
        place.sh("touch file; ln file other")


def test_findmnt_shows_the_type_and_the_source_without_the_token(place: Place) -> None:
    shown = place.run("findmnt", "-rno", "FSTYPE,SOURCE,TARGET", "--target", place.path)
    assert shown.split() == ["fuse.blobfs", place.mount.source, str(place.mount.path)]
    assert "?" not in shown
    assert not re.search(r"\bsi[gk]\b|sv=", Path("/proc/self/mountinfo").read_text())


def test_df_and_du_count(place: Place) -> None:
    place.sh("seq 1 100000 > file")
    assert int(place.sh("df --output=avail -B 1 . | tail -n 1")) > 2**40
    assert int(place.sh("du -B 1 --apparent-size file").split()[0]) == 588895
    assert place.sh("stat -f -c %l .") == "255\n"
