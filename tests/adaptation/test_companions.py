"""Second losses by hand: what they are, whom their gradients reach, what a resume keeps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.transforms import Compose
from torch import Tensor

from medseg_diff.adaptation.rows import adversarial_output, mean_teacher
from medseg_diff.adaptation.rows.adversarial_output import OutputDiscriminator, patches, said
from medseg_diff.adaptation.rows.mean_teacher import Consistency, disagreement, ramp
from medseg_diff.adaptation.scans import UnlabelledCrops
from medseg_diff.adaptation.work import Work
from medseg_diff.checkpoint import load_tensors
from medseg_diff.data.records import Batch
from medseg_diff.errors import UsageError
from medseg_diff.model import UNetModel, build_model
from medseg_diff.training.fit import Options, fit
from tests.adaptation.fixtures import work_on
from tests.tiny import tiny_config

MAKERS = {"mean_teacher": Consistency, "adversarial_output": OutputDiscriminator}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return work_on(tmp_path_factory.mktemp("companions"))


def unet(work: Work) -> UNetModel:
    torch.manual_seed(0)
    model = build_model(work.config)
    assert isinstance(model, UNetModel)
    return model


def batch() -> Batch:
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    none = torch.zeros(2)
    return Batch(image, (image > 0).short(), none, torch.zeros(2, 2, 16, 16), torch.zeros(2, 2))


def test_crops_follow_from_their_number_and_need_no_mask(work: Work):
    target = work.unlabelled
    crops = UnlabelledCrops(target, work.config)
    assert crops.images(0).shape == (2, 1, 16, 16)
    assert torch.equal(crops.images(5), UnlabelledCrops(target, work.config).images(5))
    assert not torch.equal(crops.images(5), crops.images(6))
    assert not torch.equal(crops.images(0)[1], crops.images(1)[0])
    # The same scans with masks, which could not even be read, are cut as if they had none.
    masked = target.with_cases(
        c.model_copy(update={"references": ("labels/gone.nii.gz",), "sha256": {}})
        for c in work.target.part("train")
    )
    assert torch.equal(crops.images(5), UnlabelledCrops(masked, work.config).images(5))
    other = work.config.model_copy(update={"seed": 1})
    assert not torch.equal(crops.images(5), UnlabelledCrops(target, other).images(5))


def test_disagreement_and_ramp_by_hand():
    one, other = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    one[:, 0] = other[:, 0] = 1
    other[..., 0] = 1 - other[..., 0]
    # Half of the voxels differ by 1 in both of their two classes.
    assert float(disagreement(one, other)) == pytest.approx(1)
    assert ramp(0) == pytest.approx(10 * math.exp(-5))
    assert ramp(0.2) == pytest.approx(10 * math.exp(-1.25))
    assert ramp(0.4) == ramp(1) == 10


def test_a_student_that_sees_what_its_teacher_sees_has_nothing_to_learn(work: Work):
    companion, model = Consistency(work.unlabelled, work.config), unet(work)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    assert companion.losses(model, batch(), 3, average)["consistency"].item() > 1e-6
    companion.change = Compose([])
    assert companion.losses(model, batch(), 3, average)["consistency"].item() == 0


def test_the_teacher_is_the_average_and_gets_no_gradient(work: Work):
    companion, model = Consistency(work.unlabelled, work.config), unet(work)
    companion.change = Compose([])
    # A teacher of zeros says each of two classes with 1/2.
    average = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    images = companion.crops.images(1)
    p = model.codec.probabilities(model.network(images)).detach()
    wanted = ramp(1 / 4) * float((2 * (p[:, 0] - 0.5).square()).mean())
    loss = companion.losses(model, batch(), 1, average)["consistency"]
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not any(v.requires_grad for v in average.values())


def test_views_are_strong_and_repeatable(work: Work):
    companion = Consistency(work.unlabelled, work.config)
    shown = companion.crops.images(0)
    view = companion._changed(shown, 0)
    assert view.shape == shown.shape
    assert torch.equal(view, companion._changed(shown, 0))
    views = [companion._changed(shown, n) for n in range(5)]
    assert not any(torch.equal(each, shown) for each in views)
    assert not any(torch.equal(each, view) for each in views[1:])


def test_coordinates_are_not_changed(work: Work):
    plan = work.config.plan.model_copy(update={"coordinates": True})
    config = work.config.model_copy(update={"plan": plan})
    companion = Consistency(work.unlabelled, config)
    shown = companion.crops.images(0)
    assert shown.shape[1] == 3
    assert torch.equal(companion._changed(shown, 0)[:, 1:], shown[:, 1:])


def test_what_the_judge_says_by_hand():
    even = torch.zeros(1, 1, 2, 2)
    assert float(said(even, source=True)) == pytest.approx(math.log(2))
    sure = torch.full((1, 1, 2, 2), 3.0)
    assert float(said(sure, source=True)) == pytest.approx(math.log1p(math.exp(-3)))
    assert float(said(sure, source=False)) == pytest.approx(3 + math.log1p(math.exp(-3)))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_judge_reads_patches_of_any_size(dims: int):
    judge = patches(3, dims)
    assert judge(torch.rand(1, 3, *[5] * dims)).shape == (1, 1, *[1] * dims)
    assert judge(torch.rand(1, 3, *[17] * dims)).shape == (1, 1, *[3] * dims)


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def test_one_backward_gives_each_network_its_own_gradient(work: Work):
    torch.manual_seed(1)
    companion, model = OutputDiscriminator(work.unlabelled, work.config), unet(work)
    given = batch()
    parts = companion.losses(model, given, 0, {})
    torch.stack(list(parts.values())).sum().backward()
    ours, theirs = list(model.parameters()), list(companion.parameters())
    found = [[p.grad for p in each] for each in (ours, theirs)]
    p = model.codec.probabilities(model.network(companion.crops.images(0)))
    q = model.codec.probabilities(model.network(given.image)).detach()
    fooled = adversarial_output.WEIGHT * said(companion.judge(p), source=True)
    own = said(companion.judge(q), source=True) + said(companion.judge(p.detach()), source=False)
    torch.testing.assert_close(found[0], gradients(fooled, ours))
    torch.testing.assert_close(found[1], gradients(own / 2, theirs))


def test_the_judge_learns_to_tell_and_the_masks_to_fool(work: Work):
    """All background against all foreground: told apart; then the gradient makes background."""
    torch.manual_seed(0)
    judge = patches(2, 2)
    empty, full = torch.zeros(2, 2, 16, 16), torch.zeros(2, 2, 16, 16)
    empty[:, 0] = full[:, 1] = 1
    optimiser = torch.optim.Adam(judge.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        loss = said(judge(empty), source=True) + said(judge(full), source=False)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    logits = torch.zeros(2, 2, 16, 16)
    logits[:, 1] = 2
    logits.requires_grad_(True)
    said(judge(logits.softmax(1)), source=True).backward()
    assert float(logits.grad[:, 0].sum()) < 0 < float(logits.grad[:, 1].sum())


@pytest.mark.parametrize("name", MAKERS)
def test_a_resumed_training_is_the_one_that_never_stopped(name: str, work: Work, tmp_path: Path):
    class Cut(Exception):
        pass

    def stop(progress, values):
        if progress.step == 2:
            raise Cut

    options = Options(companion=lambda config: MAKERS[name](work.unlabelled, config))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    losses = []
    fit(work.config, whole, replace(options, report=lambda p, v: losses.append(v)))
    with pytest.raises(Cut):
        fit(work.config, cut, replace(options, report=stop))
    fit(work.config, cut, replace(options, resume=True))
    ends = [
        load_tensors(run / "checkpoints" / "step_00000004" / "tensors.safetensors")
        for run in (whole, cut)
    ]
    assert ends[0].keys() == ends[1].keys()
    assert any(k.startswith("companion/") for k in ends[0]) == (name == "adversarial_output")
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    more = {"mean_teacher": {"consistency"}, "adversarial_output": {"adversarial", "discriminator"}}
    assert all(more[name] <= set(values) for values in losses)
    parts = ("dice", "cross_entropy", *more[name])
    assert all(v["loss"] == pytest.approx(sum(v[k] for k in parts), rel=1e-5) for v in losses)
    # The run holds the model alone, and the model is not the one that trained without.
    fit(work.config, tmp_path / "plain")
    runs = [load_tensors(r / "model.safetensors") for r in (whole, tmp_path / "plain")]
    assert runs[0].keys() == runs[1].keys()
    assert any(not torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


@pytest.mark.parametrize("maker", MAKERS.values())
def test_a_model_without_logits_is_refused(maker: type, work: Work):
    model = build_model(tiny_config())
    with pytest.raises(UsageError, match="plain U-Net"):
        maker(work.unlabelled, work.config).losses(model, batch(), 0, {})


def test_rows_say_that_they_used_scans_and_no_masks(tmp_path: Path):
    for row in (mean_teacher, adversarial_output):
        work = work_on(tmp_path / row.__name__.split(".")[-1])
        assert row.adapt(work).run.is_dir()
        assert (work.target_used, work.labels_used) == (True, False)
