"""MSN's recipes, schedules and automatic settings, and what is refused or warned of before the first step."""

import dataclasses
from typing import Any

import pytest
import torch
from test_msn import CONFIG, msn

from nolabel.config.load import load_recipe
from nolabel.errors import UsageError
from nolabel.methods.msn import MSNConfig
from nolabel.optim.optimizers import set_schedules
from nolabel.optim.schedules import Clock


def test_the_recipes_are_the_papers() -> None:
    shipped, headline = load_recipe("msn"), load_recipe("msn-headline")
    assert shipped.method == MSNConfig() and (shipped.stretch, shipped.epochs, shipped.batch_size) == (1.25, 800, 1024)
    c = MSNConfig()
    assert (c.num_prototypes, c.hidden_dim, c.output_dim, c.mask_ratio) == (1024, 2048, 256, 0.15)
    assert (c.temperature, c.sharpening, c.sinkhorn_rounds, c.memax_weight) == (0.1, 0.25, 3, 1.0)
    assert (c.entropy_weight, c.label_smoothing, c.momentum, c.drop_path) == (0.0, 0.0, 0.996, 0.0)
    assert headline == dataclasses.replace(
        shipped, recipe="msn-headline", method=dataclasses.replace(c, sinkhorn_rounds=0, memax_weight=5.0)
    )
    o = shipped.optim
    assert (o.name, o.clip, o.clip_grad, o.decay_all) == ("adamw", "joint", 3.0, False)


def test_the_schedules_end_where_the_papers_code_ends() -> None:
    """Over 1.25 times 800 epochs, cut at 800: weight decay .3656, momentum .9992, 9.8 % of the learning rate."""
    config, per_epoch = load_recipe("msn"), 1251
    total = round(800 * per_epoch * config.stretch)
    adamw = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], weight_decay=0.0)
    adamw.param_groups[0]["decay"] = True
    first, peak, last = (
        set_schedules(adamw, config.optim, 1024, Clock(step, total, per_epoch))
        for step in (0, 15 * per_epoch - 1, 800 * per_epoch - 1)
    )
    assert (first["lr"], peak["lr"]) == pytest.approx((2e-4, 1e-3))
    assert last["lr"] == pytest.approx(9.9e-5, rel=0.01) and last["weight_decay"] == pytest.approx(0.3656, abs=1e-4)
    j = msn(config=dataclasses.replace(CONFIG, momentum=0.996))
    assert j.method.settings(Clock(800 * per_epoch, total, per_epoch))["momentum"] == pytest.approx(0.9992)


@pytest.mark.parametrize(
    ("images", "batch", "prototypes"), [(1_281_167, 1024, 1024), (50_000, 128, 128), (1000, 300, 128), (8, 8, 2)]
)
def test_auto_fits_prototypes_to_batch_and_images(images: int, batch: int, prototypes: int) -> None:
    config = MSNConfig(num_prototypes="auto", momentum="auto")
    assert config.resolve(images, batch, 3000) == MSNConfig(num_prototypes=prototypes, momentum=0.98 + 0.01)


@pytest.mark.parametrize("prototypes", [-1, 0, 1, 33])
def test_prototypes_that_make_no_sense_are_refused(prototypes: int) -> None:
    with pytest.raises(UsageError, match=f"{prototypes} prototypes for 32 images.*\n.*auto"):
        msn(num_prototypes=prototypes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_ratio": 1.0}, "masking ratio of 1 is invalid"),
        ({"mask_ratio": -0.5}, "masking ratio of -0.5 is invalid"),
        ({"mask_ratio": 0.95}, "leaves none of 16 patches"),
        ({"num_random": 0, "num_focal": 0}, "0 random and 0 focal anchors"),
        ({"num_random": -1}, "-1 random"),
        ({"random_size": 30}, "30 px don't divide into patches of 8 px"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        msn(**values)
    assert len(str(caught.value).splitlines()) <= 5


def test_masking_needs_a_vit() -> None:
    method = msn("resnet").method
    assert method.check() == []  # without masking a CNN will do
    method.config = CONFIG  # type: ignore[assignment]
    with pytest.raises(UsageError, match="masking needs a ViT"):
        method.check()


@pytest.mark.parametrize(("ratio", "warned"), [(0.15, True), (0.3, True), (0.5, False), (0.7, False)])
def test_large_networks_need_much_masking(ratio: float, warned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    large = ("patch_size=16", "embed_dim=1024", "depth=1", "num_heads=2")
    msn(mask_ratio=ratio, random_size=64, focal_size=32, backbone_args=large)
    assert ("known to diverge" in capsys.readouterr().err) is warned


def test_nothing_against_collapse_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    msn(memax_weight=0.0)
    msn(sinkhorn_rounds=0)
    assert capsys.readouterr().err == ""
    msn(memax_weight=0.0, sinkhorn_rounds=0)
    assert "expect collapse" in capsys.readouterr().err
