import pytest

from llm.report.ledger import Ledger


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_inner_phases_are_taken_out_of_outer_ones_and_totals_add_up():
    clock = Clock()
    ledger = Ledger(clock=clock)
    clock.now = 1.0  # other: 1
    with ledger("train"):
        clock.now = 3.0  # train: 2
        with ledger("eval"):
            clock.now = 7.0  # eval: 4
            with ledger("compile"):
                clock.now = 15.0  # compile: 8
        clock.now = 31.0  # train: 2 + 16
        with ledger("eval"):
            clock.now = 32.0  # eval: 4 + 1
    clock.now = 34.0  # other: 1 + 2
    totals = ledger.totals()
    assert totals == {"train": 18.0, "compile": 8.0, "eval": 5.0, "other": 3.0}
    assert list(totals) == ["train", "compile", "eval", "other"]
    assert sum(totals.values()) == clock.now


def test_a_phase_that_raises_is_closed():
    clock = Clock()
    ledger = Ledger(clock=clock)
    with pytest.raises(RuntimeError), ledger("train"):
        clock.now = 2.0
        raise RuntimeError
    clock.now = 5.0
    assert ledger.totals() == {"other": 3.0, "train": 2.0}


def test_totals_can_be_read_while_a_phase_is_open():
    clock = Clock()
    ledger = Ledger(clock=clock)
    with ledger("train"):
        clock.now = 2.0
        assert ledger.totals()["train"] == 2.0
        clock.now = 3.0
    assert ledger.totals()["train"] == 3.0
