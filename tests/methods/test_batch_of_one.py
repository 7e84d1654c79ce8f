"""Batches of one image: refused where the loss compares images, else the weights move, with words on BatchNorm."""

import pytest
from sizes import SIZES
from tiny import job, step

from nolabel.config import check_pass
from nolabel.config.schema import TrainConfig
from nolabel.errors import UsageError
from nolabel.methods.densecl import DenseCLConfig
from nolabel.methods.simclr import SimCLRConfig

SIMCLR = SimCLRConfig(size=32, projection_dim=16)


@pytest.mark.parametrize("option", ["batch_size", "micro_batch"])
def test_losses_that_compare_images_need_two(option: str) -> None:
    name = option.replace("_", "-")
    with pytest.raises(UsageError, match=f"--{name} 1 gives the loss 1 image(.|\n)*Use --{name} 2 or more"):
        job(SIMCLR, "vit", **{option: 1})
    job(SIMCLR, "vit", batch_size=4, micro_batch=2)


@pytest.mark.parametrize("backbone", ["vit", "resnet"])
@pytest.mark.parametrize("name", SIZES)
def test_one_image_moves_weights_or_is_refused(name: str, backbone: str) -> None:
    try:
        said = step(job(SIZES[name].config, backbone, batch_size=1), 0)
    except UsageError as error:
        assert "2 or more" in str(error)
        assert len(str(error).splitlines()) <= 5
    else:
        assert said["grad_norm"] > 0


def test_batchnorm_of_one_image_is_warned_of() -> None:
    config = TrainConfig(method=DenseCLConfig(), batch_size=1, micro_batch=1)
    (line,) = check_pass(config, 1, normalises=True)
    assert "BatchNorm sees one image at a time" in line
    assert not check_pass(config, 1, normalises=False)
    assert not check_pass(TrainConfig(method=DenseCLConfig(), batch_size=2, micro_batch=2), 2, normalises=True)


def test_a_map_of_one_place_is_refused_in_words() -> None:
    j = job(DenseCLConfig(size=8, queue_size=8, hidden_dim=8, projection_dim=8, dense_weight=0), "resnet", batch_size=1)
    with pytest.raises(UsageError, match="BatchNorm has one value per channel with 1 image"):
        step(j, 0)
