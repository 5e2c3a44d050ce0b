import math
import signal
import threading
import time

import pytest

from posttrain.rewards.deadline import deadline


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.setitimer(signal.ITIMER_REAL, 0) == (0, 0)


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("hang", [spin, time.sleep])
def test_what_hangs_is_stopped(hang):
    ended = []

    def work():
        hang(10)
        ended.append(hang)

    with pytest.raises(TimeoutError, match=r"more than 0\.1 s"), deadline(0.1):
        work()
    assert not ended


def test_what_ends_in_time_is_left_alone():
    with deadline(1.0):
        spin(0.01)
    spin(1.1)


def test_errors_of_the_block_come_through():
    with pytest.raises(KeyError), deadline(1.0):
        {}["x"]


def test_the_inner_limit_ends_the_inner_block_alone():
    with deadline(100.0):
        with pytest.raises(TimeoutError, match=r"0\.05 s"), deadline(0.05):
            spin(100)
        left = signal.getitimer(signal.ITIMER_REAL)[0]
    assert 50 < left < 99.96


def test_the_outer_limit_counts_inside_too():
    with pytest.raises(TimeoutError, match=r"0\.1 s"), deadline(0.1), deadline(100.0):
        spin(5)


def test_an_outer_limit_that_passed_meanwhile_is_not_forgotten():
    def unstoppable_then_slow():
        with deadline(0.05):
            signal.setitimer(signal.ITIMER_REAL, 0)
            spin(0.2)
        spin(1)

    with pytest.raises(TimeoutError, match=r"0\.1 s"), deadline(0.1):
        unstoppable_then_slow()


def test_an_alarm_that_was_there_goes_on():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    with deadline(0.05), pytest.raises(TimeoutError):
        spin(100)
    assert not rung
    spin(1.0)
    assert len(rung) == 1
    signal.signal(signal.SIGALRM, before)


def test_there_is_no_limit_off_the_main_thread():
    done = []

    def work():
        with deadline(0.01):
            spin(0.05)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_no_seconds_are_no_limit(seconds):
    with deadline(seconds):
        spin(0.01)


def test_the_comparison_of_expressions_keeps_the_limit():
    from posttrain.tasks.answers import same_number

    with deadline(30.0):
        assert same_number("7", r"\sqrt{49}")
        assert math.isclose(signal.getitimer(signal.ITIMER_REAL)[0], 30, abs_tol=20)
