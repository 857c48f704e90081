"""AdaBN and TENT on networks whose statistics and entropy are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medseg_diff.adaptation.test_time import (
    adapt_statistics,
    batch_norms,
    collapsed,
    entropy_minimised,
    mean_entropy,
)
from medseg_diff.config import parse_config
from medseg_diff.errors import UsageError
from medseg_diff.model import build_model
from tests.tiny import KEYS, tiny_config


def model_of(norm: str):
    torch.manual_seed(0)
    config = tiny_config(
        model={"kind": "unet", "conditioner": "none", "norm": norm, "output": "clean"}
    )
    return build_model(config).eval()


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randn(6, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 2


def test_statistics_become_the_targets(windows: torch.Tensor):
    model = model_of("batch")
    first = batch_norms(model)[0]
    seen: list[torch.Tensor] = []
    hook = first.register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    assert adapt_statistics(model, [windows[:3], windows[3:]]) == 2
    hook.remove()
    axes = (0, 2, 3, 4)
    mean = torch.stack([x.mean(axes) for x in seen]).mean(0)
    variance = torch.stack([x.var(axes) for x in seen]).mean(0)
    torch.testing.assert_close(first.running_mean, mean)
    torch.testing.assert_close(first.running_var, variance)
    assert not first.training
    assert first.momentum == 0.1


def test_the_sources_own_windows_change_nothing(windows: torch.Tensor):
    """Source = target: adapting twice to the same windows is adapting once."""
    model = model_of("batch")
    adapt_statistics(model, [windows])
    before = model.context(windows).anchor
    adapt_statistics(model, [windows])
    torch.testing.assert_close(model.context(windows).anchor, before)


def test_a_scaled_target_is_brought_back(windows: torch.Tensor):
    """After adaptation a network whose first norm follows the image forgets gain and offset."""
    model = model_of("batch")
    adapt_statistics(model, [windows])
    source = model.context(windows).anchor
    target = 10 * windows
    assert (model.context(target).anchor - source).abs().max() > 0.1
    adapt_statistics(model, [target])
    torch.testing.assert_close(model.context(target).anchor, source, atol=1e-2, rtol=1e-2)


def test_entropy_falls_and_the_network_is_put_back(windows: torch.Tensor):
    model = model_of("batch")
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def entropy() -> float:
        p = model.codec.probabilities(model.context(windows).anchor).detach()
        return float(mean_entropy(p))

    with entropy_minimised(model, windows, steps=0):
        start = entropy()
    with entropy_minimised(model, windows, steps=10, rate=5e-3) as verdict:
        assert verdict == "adapted"
        assert entropy() < start - 1e-3
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, state[k])}
    # Gains, shifts and statistics of the norms, no convolution.
    norms = {id(p) for norm in batch_norms(model) for p in norm.parameters()}
    weights = {k for k, p in model.named_parameters() if id(p) not in norms}
    assert not changed & weights
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_collapse_goes_back_to_the_statistics_alone(
    windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    model = model_of("batch")
    with entropy_minimised(model, windows, steps=0):
        wanted = model.context(windows).anchor
    monkeypatch.setattr("medseg_diff.adaptation.test_time.collapsed", lambda *_: True)
    with entropy_minimised(model, windows, steps=3, rate=0.1) as verdict:
        assert verdict == "collapsed"
        torch.testing.assert_close(model.context(windows).anchor, wanted)


def test_what_counts_as_a_collapse():
    assert collapsed(100, 49)
    assert collapsed(100, 201)
    assert collapsed(100, math.nan)
    assert not collapsed(100, 51)
    assert not collapsed(0, 10)


def test_entropy_of_known_probabilities():
    even = torch.full((1, 4, 2, 2), 0.25)
    assert float(mean_entropy(even)) == pytest.approx(math.log(4), rel=1e-5)
    sure = torch.zeros(1, 2, 2, 2)
    sure[:, 0] = 1
    assert float(mean_entropy(sure)) == pytest.approx(0, abs=1e-6)


def test_a_network_without_batch_norm_is_refused(windows: torch.Tensor):
    model = model_of("instance")
    assert not any(isinstance(m, nn.BatchNorm3d) for m in model.modules())
    with pytest.raises(UsageError, match=r"model\.norm"):
        adapt_statistics(model, [windows])
    with pytest.raises(UsageError, match=r"model\.norm"), entropy_minimised(model, windows):
        pass


def test_batch_norm_is_for_the_plain_unet():
    keys = {**KEYS, "model": {**KEYS["model"], "norm": "batch"}}
    with pytest.raises(UsageError, match="plain U-Net"):
        parse_config(keys)
