"""The line before the capture: the room may change while actions wait."""

from __future__ import annotations

import threading
from typing import List

from rootseal.daemon_line import Line


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
