"""The line before the capture: the room may change while actions wait."""

from __future__ import annotations

import threading
import time
from typing import Callable, List, Optional

import pytest
from rootseal.daemon_line import Line, leaves_room


def test_who_came_first_is_first_and_leaving_makes_room() -> None:
    line, left = Line(lambda: 1), threading.Event()
    order: List[int] = []

    def one(number: int) -> None:
        with line.place():
            order.append(number)

    with line.place(left.set):
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=one, args=(number,)))
            threads[-1].start()
            while line.queued <= number:
                pass
        assert order == [] and not left.is_set()
    assert left.is_set()
    for thread in threads:
        thread.join()
    assert order == list(range(5)) and line.queued == 0


def test_room_that_root_makes_is_noticed_without_anybody_leaving() -> None:
    room = [1]
    line, entered = Line(lambda: room[0]), threading.Event()

    def one() -> None:
        with line.place():
            entered.set()

    with line.place():
        thread = threading.Thread(target=one)
        thread.start()
        while not line.queued:
            pass
        assert not entered.is_set()
        room[0] = 2
        assert entered.wait(60)
    thread.join()


def test_a_place_whose_cleaning_up_fails_is_free_again() -> None:
    line = Line(lambda: 1)

    def fail() -> None:
        raise OSError

    for _ in range(2):
        try:
            with line.place(fail):
                pass
        except OSError:
            continue


def wait_until(happened: Callable[[], bool]) -> None:
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (1, [1, 0]),
        (2, [1, 1, 0]),
        (3, [2, 1, 0]),
        (8, [4, 2, 1, 1, 0]),
        (1024, [512, 256, 128, 64, 32, 16, 8, 4, 2, 1, 1, 0]),
    ],
)
def test_each_user_may_hold_half_of_what_others_left(room: int, expected: List[int]) -> None:
    held: List[int] = []
    for _ in expected:
        own = 0
        while leaves_room(own, sum(held) + own, room):
            own += 1
        held.append(own)
    assert held == expected


def test_who_takes_many_places_leaves_one_to_the_next_user() -> None:
    line, leave = Line(lambda: 4), threading.Event()
    entered: List[Optional[int]] = []

    def one(user: Optional[int]) -> None:
        with line.place(user=user):
            entered.append(user)
            leave.wait(60)

    threads = [threading.Thread(target=one, args=(user,)) for user in (1, 1, 1, 1, 2, None)]
    for thread in threads[:4]:
        thread.start()
    wait_until(lambda: len(entered) == 2 and line.queued == 2)
    for count, thread in enumerate(threads[4:], 3):
        thread.start()
        wait_until(lambda: len(entered) == count)  # noqa: B023 - within this round
    assert (entered, line.queued) == ([1, 1, 2, None], 2)
    leave.set()
    for thread in threads:
        thread.join()
    assert sorted(filter(None, entered)) == [1, 1, 1, 1, 2] and line.queued == 0
