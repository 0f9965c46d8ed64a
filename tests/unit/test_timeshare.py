"""What takes a share of the time, however long it takes."""

from postrider.domain.timeshare import TimeShare


def test_it_is_due_again_when_it_has_taken_its_share() -> None:
    share = TimeShare(0.1, longest_s=100)
    assert share.due(0)
    share.spent(0, 1)
    assert not share.due(10.9)
    assert share.due(11)


def test_one_long_wait_does_not_put_it_off() -> None:
    share = TimeShare(0.02, longest_s=100)
    share.spent(0, 0.01)
    share.spent(1, 41)
    assert share.due(41.5)


def test_it_is_never_put_off_for_longer_than_was_said() -> None:
    share = TimeShare(0.02, longest_s=30)
    share.spent(0, 40)
    assert not share.due(69)
    assert share.due(70)


def test_it_can_be_asked_for_at_once() -> None:
    share = TimeShare(0.02, longest_s=30)
    share.spent(0, 40)
    share.reset()
    assert share.due(40)
