"""What is kept between draws: a few values by owner and key, for no longer than the owner lives."""

import os
import signal
import threading
import time
import weakref

import pytest

from vqvae2_fast.sampling.kept import Kept


class Plan:
    pass


def unexpected():
    raise AssertionError("a value was made that is kept")


def test_keys_and_plans_are_kept_apart():
    kept, plans = Kept(2), [Plan(), Plan()]
    for plan in plans:
        for key in "ab":
            kept.get(plan, key, lambda plan=plan, key=key: (id(plan), key))
    for plan in plans:
        for key in "ab":
            assert kept.get(plan, key, unexpected) == (id(plan), key)


def test_the_least_recently_used_goes_before_a_new_one_is_made():
    kept, plan = Kept(2), Plan()
    for key in "aba":
        kept.get(plan, key, lambda key=key: key)
    assert kept.get(plan, "c", lambda: kept.count(plan)) == 1  # only a was left
    assert kept.get(plan, "a", unexpected) == "a"
    assert kept.get(plan, "b", lambda: "new") == "new"


def test_nothing_outlives_its_plan():
    kept, plan, value = Kept(2), Plan(), Plan()
    kept.get(plan, "a", lambda held=value: held)
    left = weakref.ref(value)
    del value
    assert left() is not None
    del plan
    assert left() is None


def test_a_shared_value_is_made_once_by_threads_that_ask_at_once():
    kept, plan, made, found = Kept(1), Plan(), [], []
    at_once = threading.Barrier(5)

    def make():
        time.sleep(0.2)  # all others ask meanwhile
        made.append(object())
        return made[-1]

    def ask():
        at_once.wait(10)
        found.append(kept.get(plan, "a", make))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and found == made * 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_what_another_thread_makes():
    kept, plan = Kept(1), Plan()
    making, go = threading.Event(), threading.Event()

    def make():
        making.set()
        go.wait(60)

    thread = threading.Thread(target=lambda: kept.get(plan, "a", make))
    thread.start()
    assert making.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(kept.get(plan, "a", lambda: 7) - 7)
    status = os.waitpid(child, 0)[1]
    go.set()
    thread.join()
    assert status == 0
