"""The inode table: what keeps a node, and that the tree stays a tree whatever happens to it."""

import errno
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blobfs.attributes import Attributes, Kind
from blobfs.errors import PosixError
from blobfs.inodes import ROOT_INO, Inodes, Node
from blobfs.reader import Reach


def attrs(kind: Kind = Kind.FILE) -> Attributes:
    return Attributes(kind, 0o644, 0, 0, 0, 0, 0)


def no_lock() -> AbstractAsyncContextManager[Any]:
    return nullcontext()


def new_table() -> Inodes:
    return Inodes(attrs(Kind.DIRECTORY), no_lock)


def opened(inodes: Inodes, node: Node, *, writable: bool = False) -> int:
    return inodes.open(node, writable=writable, reach=Reach())


@pytest.fixture
def inodes() -> Inodes:
    table = new_table()
    table.root.volume = object()
    return table


def known(inodes: Inodes, node: Node) -> bool:
    return any(candidate is node for candidate in inodes)


# What keeps a node


def test_a_node_stays_as_long_as_the_kernel_counts_lookups(inodes: Inodes) -> None:
    node = inodes.add(inodes.root, "a", attrs())
    node.lookups = 3
    inodes.forget(node.ino, 2)
    assert inodes.get(node.ino) is node
    inodes.forget(node.ino, 1)
    assert "a" not in inodes.root.children
    with pytest.raises(PosixError) as unknown:
        inodes.get(node.ino)
    assert unknown.value.errno == errno.ESTALE


def test_a_node_stays_as_long_as_it_is_open(inodes: Inodes) -> None:
    node = inodes.add(inodes.root, "a", attrs())
    number = opened(inodes, node)
    inodes.release(node)
    assert inodes.handle(number).node is node
    inodes.close(number)
    assert known(inodes, node)
    inodes.release(node)
    assert not known(inodes, node)
    with pytest.raises(PosixError) as closed:
        inodes.handle(number)
    assert closed.value.errno == errno.EBADF


@pytest.mark.parametrize("what", ["unsaved", "overlay", "draft"])
def test_a_node_stays_as_long_as_it_has_what_is_not_stored(inodes: Inodes, what: str) -> None:
    node = inodes.add(inodes.root, "a", attrs())
    before = getattr(node, what)
    setattr(node, what, {"key": "value"})
    inodes.release(node)
    assert known(inodes, node)
    setattr(node, what, before)
    inodes.release(node)
    assert not known(inodes, node)


def test_directories_go_with_the_last_node_below_them(inodes: Inodes) -> None:
    outer = inodes.add(inodes.root, "outer", attrs(Kind.DIRECTORY))
    inner = inodes.add(outer, "inner", attrs(Kind.DIRECTORY))
    file = inodes.add(inner, "file", attrs())
    inner.lookups = file.lookups = 1
    inodes.forget(inner.ino, 1)
    assert len(inodes) == 4
    inodes.forget(file.ino, 1)
    assert [node.ino for node in inodes] == [ROOT_INO]


def test_the_root_stays(inodes: Inodes) -> None:
    inodes.root.lookups = 1
    inodes.forget(ROOT_INO, 1)
    assert inodes.get(ROOT_INO) is inodes.root


def test_forgetting_more_than_was_looked_up_is_a_bug(inodes: Inodes) -> None:
    node = inodes.add(inodes.root, "a", attrs())
    node.lookups = 1
    with pytest.raises(AssertionError, match="forget 2"):
        inodes.forget(node.ino, 2)


def test_forgetting_what_is_gone_is_none(inodes: Inodes) -> None:
    inodes.forget(12345, 1)


# Where a node is


def test_a_detached_node_lives_on_while_it_is_open(inodes: Inodes) -> None:
    node = inodes.add(inodes.root, "a", attrs())
    number = opened(inodes, node)
    inodes.detach(node)
    assert not node.is_linked
    assert "a" not in inodes.root.children
    assert inodes.get(node.ino) is node
    other = inodes.add(inodes.root, "a", attrs())
    assert other.ino != node.ino
    inodes.close(number)
    inodes.release(node)
    assert not known(inodes, node)
    assert known(inodes, other)


def test_a_moved_node_keeps_its_number_and_what_is_below_it(inodes: Inodes) -> None:
    one = inodes.add(inodes.root, "one", attrs(Kind.DIRECTORY))
    two = inodes.add(inodes.root, "two", attrs(Kind.DIRECTORY))
    moved = inodes.add(one, "d", attrs(Kind.DIRECTORY))
    file = inodes.add(moved, "f", attrs())
    number = moved.ino
    one.lookups = two.lookups = moved.lookups = file.lookups = 1
    inodes.move(moved, two, "new")
    assert (file.path, moved.ino, one.children) == ("two/new/f", number, {})
    assert file.is_within(two)
    assert not file.is_within(one)


def test_a_directory_that_a_move_empties_goes_if_nobody_knows_it(inodes: Inodes) -> None:
    directory = inodes.add(inodes.root, "d", attrs(Kind.DIRECTORY))
    node = inodes.add(directory, "a", attrs())
    node.lookups = 1
    inodes.move(node, inodes.root, "a")
    assert not known(inodes, directory)
    assert list(inodes.root.children) == ["a"]


def test_a_file_has_the_same_number_when_it_is_known_again(inodes: Inodes) -> None:
    numbers = []
    for _ in range(2):
        node = inodes.add(inodes.root, "a", attrs())
        numbers.append(node.ino)
        inodes.release(node)
    assert numbers[0] == numbers[1]


class Table(RuleBasedStateMachine):
    """Whatever is done in whatever order, the table is sound and holds no node too many."""

    def __init__(self) -> None:
        super().__init__()
        self.inodes = new_table()
        self.inodes.root.volume = object()
        self.handles: list[int] = []

    def nodes(self, data: st.DataObject, *, linked: bool) -> Node:
        found = [
            node
            for node in self.inodes
            if node.ino != ROOT_INO and (not linked or node.parent is not None)
        ]
        return data.draw(st.sampled_from(sorted(found, key=lambda node: node.ino)))

    def free_place(self, data: st.DataObject) -> tuple[Node, str] | None:
        directories = [node for node in self.inodes if node.is_directory and node.is_linked]
        directories.sort(key=lambda node: node.path)
        parent = data.draw(st.sampled_from(directories))
        name = data.draw(st.sampled_from("abc"))
        return None if name in parent.children else (parent, name)

    @rule(data=st.data(), kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY]))
    def look_up(self, data: st.DataObject, kind: Kind) -> None:
        place = self.free_place(data)
        if place is not None:
            self.inodes.add(*place, attrs(kind)).lookups += 1

    @precondition(lambda self: self._any_linked())
    @rule(data=st.data())
    def look_up_again(self, data: st.DataObject) -> None:
        self.nodes(data, linked=True).lookups += 1

    def _any_linked(self) -> bool:
        return any(node.parent is not None for node in self.inodes)

    @precondition(lambda self: len(self.inodes) > 1)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        node = self.nodes(data, linked=False)
        self.inodes.forget(node.ino, data.draw(st.integers(0, node.lookups)))

    @precondition(lambda self: len(self.inodes) > 1)
    @rule(data=st.data(), writable=st.booleans())
    def open(self, data: st.DataObject, writable: bool) -> None:
        node = self.nodes(data, linked=False)
        if not node.is_directory:
            self.handles.append(opened(self.inodes, node, writable=writable))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.handles))
        self.handles.remove(number)
        self.inodes.release(self.inodes.close(number).node)

    @precondition(lambda self: self._any_linked())
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        node = self.nodes(data, linked=True)
        if not node.children:
            self.inodes.detach(node)

    @precondition(lambda self: self._any_linked())
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        node = self.nodes(data, linked=True)
        place = self.free_place(data)
        if place is not None and not place[0].is_within(node):
            self.inodes.move(node, *place)

    @invariant()
    def the_table_is_sound(self) -> None:
        self.inodes.check()
        assert self.inodes.open_handles == len(self.handles)

    @invariant()
    def no_node_is_kept_for_nothing(self) -> None:
        for node in self.inodes:
            assert node.ino == ROOT_INO or node.lookups or node.opens or node.children

    def teardown(self) -> None:
        for number in self.handles:
            self.inodes.release(self.inodes.close(number).node)
        for node in self.inodes:
            if node.ino != ROOT_INO:
                self.inodes.forget(node.ino, node.lookups)
        assert [node.ino for node in self.inodes] == [ROOT_INO]


TestTable = Table.TestCase
