"""Voting patterns: by hand, and every vote of any draws read back from them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg_diff.fusion import voting_patterns


def test_patterns_by_hand():
    draws = np.array([[[0, 1], [1, 1]], [[0, 0], [2, 0]]])
    found = voting_patterns(draws, 3)
    assert found.rows.tolist() == [[0, 0], [1, 0], [1, 2]]
    assert found.counts.tolist() == [1, 2, 1]
    assert found.index.tolist() == [[0, 1], [2, 1]]


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 9)), elements=st.integers(0, 3)
    )
)
def test_patterns_hold_every_vote(draws):
    found = voting_patterns(iter(draws), 4)
    np.testing.assert_array_equal(found.rows[found.index].T, draws)
    assert found.counts.sum() == draws.shape[1]
    assert len(np.unique(found.rows, axis=0)) == len(found.rows)
