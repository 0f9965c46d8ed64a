"""Queues in which workspaces take turns: nobody is forgotten, offered twice or kept when gone."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from postrider.engine.turns import Queue

WORKSPACES = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), WORKSPACES, st.booleans()),
        st.tuples(st.just("pop")),
        st.tuples(st.just("remove"), WORKSPACES, st.integers(0, 5)),
    ),
    max_size=60,
)


@given(STEPS)
def test_workspaces_take_turns_and_each_gets_what_it_put_in_first(
    steps: list[tuple[str, str, int] | tuple[str]],
) -> None:
    queue: Queue[int] = Queue()
    of: defaultdict[str, list[int]] = defaultdict(list)
    turns: list[str] = []
    for number, step in enumerate(steps):
        match step:
            case ("append", str(workspace), first):
                queue.append(workspace, number, ahead=bool(first))
                of[workspace].insert(0 if first else len(of[workspace]), number)
                if workspace not in turns:
                    turns.append(workspace)
            case ("pop",):
                if turns:
                    workspace = turns.pop(0)
                    assert queue.pop() == of[workspace].pop(0)
                    if of[workspace]:
                        turns.append(workspace)
            case ("remove", str(workspace), place):
                item = of[workspace].pop(place) if place < len(of[workspace]) else -1
                assert queue.has(workspace, item) is (item >= 0)
                queue.remove(workspace, item)
                if not of[workspace] and workspace in turns:
                    turns.remove(workspace)
        assert len(queue) == queue.length == sum(map(len, of.values()))
    while turns:
        workspace = turns.pop(0)
        assert queue.pop() == of[workspace].pop(0)
        if of[workspace]:
            turns.append(workspace)


def test_a_queue_keeps_nothing_of_workspaces_that_have_nothing_in_it() -> None:
    queue: Queue[int] = Queue()
    for number in range(100):
        queue.append(f"came-{number}", number)
        queue.pop()
        queue.append(f"went-{number}", number)
        queue.remove(f"went-{number}", number)
        queue.remove(f"never-{number}", number)
        assert not queue.has(f"asked-{number}", number)
    held = [value for value in vars(queue).values() if value]
    assert not held


def test_an_item_is_taken_out_at_once_however_many_workspaces_wait() -> None:
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    queue: Queue[int] = Queue()
    names = [Name(number) for number in range(1000)]
    for number, name in enumerate(names):
        queue.append(name, number)
    compared = 0
    queue.remove(names[-1], 999)
    assert compared < 10
