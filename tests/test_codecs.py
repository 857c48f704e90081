"""Codec: what a label map becomes, and back."""

from __future__ import annotations

import math

import pytest
import torch

from medseg_diff.codecs import OneHotCodec
from medseg_diff.errors import InputError

CLASSES = OneHotCodec(((0,), (1,), (4,)))
NESTED = OneHotCodec(((1, 2, 3), (2, 3), (3,)), exclusive=False)


def labels_of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int16).reshape(1, 1, -1)


def test_classes_become_minus_and_plus_one():
    state = CLASSES.encode(labels_of(0, 1, 4, 1))
    assert state.dtype == torch.float32
    assert state[0].tolist() == [[1, -1, -1, -1], [-1, 1, -1, 1], [-1, -1, 1, -1]]
    assert CLASSES.targets(labels_of(0, 1, 4, 1))[0].tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 1],
        [0, 0, 1, 0],
    ]
    assert CLASSES.channels == 3
    assert CLASSES.weight(labels_of(0)) is None


def test_regions_overlap():
    targets = NESTED.targets(labels_of(0, 1, 2, 3))
    assert targets[0].tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("codec", "values"),
    [
        (CLASSES, (0, 1, 4)),
        (NESTED, (0, 1, 2, 3)),
        (OneHotCodec(((1, 2), (2,), (5,)), exclusive=False), (0, 1, 2, 5)),
    ],
)
def test_decode_undoes_encode(codec: OneHotCodec, values: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(values), (2, 1, 5, 4, 3), generator=generator)
    labels = torch.tensor(values, dtype=torch.int16)[index]
    decoded = codec.decode((codec.encode(labels) + 1) / 2)
    assert decoded.dtype == torch.int16
    assert torch.equal(decoded, labels)


def test_painted_values():
    assert NESTED.painted_values() == [1, 2, 3]
    disjoint = OneHotCodec(((1, 4), (2,)), exclusive=False)
    assert disjoint.painted_values() == [1, 2]


@pytest.mark.parametrize("members", [((3,), (1, 2, 3)), ((1, 2), (2, 3)), ((1,), (1,))])
def test_regions_that_cannot_be_painted_back_are_refused(members):
    with pytest.raises(InputError, match="outer to inner"):
        OneHotCodec(members, exclusive=False)


def test_a_region_is_painted_above_one_half_only():
    p = torch.tensor([[0.6, 0.9, 0.5], [0.4, 0.9, 0.6], [0.1, 0.2, 0.4]]).reshape(1, 3, 3)
    assert NESTED.decode(p).flatten().tolist() == [1, 2, 2]
    undecided = torch.full((1, 3, 1), 0.5)
    assert NESTED.decode(undecided).flatten().tolist() == [0]


def test_ignored_voxels_have_state_zero_and_weight_zero():
    codec = OneHotCodec(((0,), (1,)), ignore_label=255)
    labels = torch.tensor([0, 255, 1], dtype=torch.int32).reshape(1, 1, 3)
    assert codec.encode(labels)[0].tolist() == [[1, 0, -1], [-1, 0, 1]]
    weight = codec.weight(labels)
    assert weight is not None
    assert weight.flatten().tolist() == [1, 0, 1]


def test_probabilities_by_hand():
    logits = torch.tensor([0.0, math.log(3), math.log(4)]).reshape(1, 3, 1)
    assert CLASSES.probabilities(logits).flatten().tolist() == pytest.approx([1 / 8, 3 / 8, 4 / 8])
    assert NESTED.probabilities(logits).flatten().tolist() == pytest.approx([1 / 2, 3 / 4, 4 / 5])
    state = CLASSES.state_from_logits(logits).flatten().tolist()
    assert state == pytest.approx([-0.75, -0.25, 0.0])


@pytest.mark.parametrize("codec", [CLASSES, NESTED])
def test_logits_and_state_are_inverse(codec: OneHotCodec):
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    state = codec.state_from_logits(logits)
    back = codec.state_from_logits(codec.logits_from_state(state))
    torch.testing.assert_close(back, state, rtol=0, atol=1e-5)


def test_states_outside_the_range_give_finite_logits():
    wild = torch.tensor([-7.0, 9.0, 0.0]).reshape(1, 3, 1)
    for codec in (CLASSES, NESTED):
        logits = codec.logits_from_state(wild).flatten()
        assert bool(torch.isfinite(logits).all())
        assert logits[1] > logits[2] > logits[0]
