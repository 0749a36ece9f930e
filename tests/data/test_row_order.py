import numpy as np
import pytest

from llm.data.order import RowStream, permutation


def test_permutation_never_changes():
    """Pinned: another order on resume would repeat some rows and skip others."""
    assert permutation(10, 1, 2).tolist() == PINNED
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))
    assert permutation(1000, 5).tolist() != permutation(1000, 6).tolist()
    assert permutation(0, 1).tolist() == []


PINNED = [7, 1, 3, 0, 4, 8, 9, 2, 6, 5]


def test_each_epoch_has_every_row_in_another_order():
    stream = RowStream([100], [1.0], seed=0)
    _, row = stream.rows(0, 300)
    epochs = row.reshape(3, 100)
    assert (np.sort(epochs) == np.arange(100)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert RowStream([100], [1.0], seed=1).rows(0, 100)[1].tolist() != epochs[0].tolist()


@pytest.mark.parametrize("sources", [1, 3])
def test_any_stretch_can_be_computed_alone(sources):
    stream = RowStream([7, 50, 1000][:sources], [1.0, 2.5, 4.0][:sources], seed=4)
    whole = np.stack(stream.rows(0, 20_000))
    rng = np.random.default_rng(0)
    for _ in range(30):
        first, count = int(rng.integers(0, 19_000)), int(rng.integers(1, 1000))
        fresh = RowStream([7, 50, 1000][:sources], [1.0, 2.5, 4.0][:sources], seed=4)
        part = np.stack(fresh.rows(first, count))
        np.testing.assert_array_equal(part, whole[:, first : first + count])


def test_mixture_keeps_its_proportions_and_each_source_its_epochs():
    stream = RowStream([30, 500], [1.0, 3.0], seed=0)
    source, row = stream.rows(0, 4096 * 5)
    for first in range(0, len(source), 4096):
        assert np.bincount(source[first : first + 4096]).tolist() == [1024, 3072]
    for first in range(0, len(source), 256):  # well mixed, not in runs
        assert 30 <= (source[first : first + 256] == 0).sum() <= 100
    for n, rows in ((0, 30), (1, 500)):
        mine = row[source == n]
        whole = len(mine) // rows
        assert (np.sort(mine[: whole * rows].reshape(whole, rows)) == np.arange(rows)).all()


def test_a_small_weight_is_not_nothing():
    source, _ = RowStream([5, 5], [1e-9, 1.0], seed=0).rows(0, 4096)
    assert (source == 0).sum() == 1
