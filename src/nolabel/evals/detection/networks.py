"""Detectors on a ResNet, all of it trained: Faster R-CNN on C4, Mask R-CNN on an FPN (methods.md, C5.1 and C5.2).

Ren et al. 2015, Lin et al. 2017 and He et al. 2017, from torchvision's parts; the extra BatchNorm after the last
stage and BatchNorm in the heads are of He et al. 2020, whose protocol Wang et al. 2021 follow.
"""

from collections import OrderedDict
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from nolabel.errors import UsageError
from nolabel.networks.backbones import Backbone
from nolabel.weights.load import Loaded

Kind = Literal["c4", "fpn"]


FPN_DIM = 256
"""Width of the pyramid and of the convolutions in its heads."""


HIDDEN = 1024
"""Width of the fully connected layer of the FPN's box head."""


REGIONS = 512
"""Regions per image that the box head learns from."""


LEVELS = ["0", "1", "2", "3"]
"""Maps of the pyramid that regions are taken from."""


ANCHORS = (32, 64, 128, 256, 512)
"""Sides of the anchors in pixels where images have a shorter side of 800."""


RATIOS = (0.5, 1.0, 2.0)


class Sizes(NamedTuple):
    """Sizes of the images, in pixels."""

    train: tuple[int, ...]
    """Shorter sides, one of them by chance."""
    test: int
    longest: int


class C4(nn.Module):
    """The network up to its third stage: one map (B, C, h, w), at stride 16 unless dilated."""

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        model = net.model
        self.stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
        self.layer1, self.layer2, self.layer3 = model.layer1, model.layer2, model.layer3
        self.out_channels = int(model.feature_info[-2]["num_chs"])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return out


class Res5Head(nn.Module):
    """The fourth stage on each region, one more BatchNorm, the mean over places: (R, D)."""

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        self.layer4 = net.model.layer4
        self.norm = nn.BatchNorm2d(net.num_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer4(x)).mean((2, 3))
        return out


class Pyramid(nn.Module):
    """Four stages and the feature pyramid over them: five maps of 256 channels."""

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        self.net = net
        widths = [int(info["num_chs"]) for info in net.model.feature_info[-4:]]
        self.fpn = FeaturePyramidNetwork(widths, FPN_DIM, LastLevelMaxPool(), nn.BatchNorm2d)
        self.out_channels = FPN_DIM

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = OrderedDict((str(i), stage) for i, stage in enumerate(self.net.stages(x)))
        found: dict[str, Tensor] = self.fpn(maps)
        return found


def detector(loaded: Loaded, net: Backbone, kind: Kind, num_classes: int, masks: bool, sizes: Sizes) -> Any:
    """The detector around `net`, which it takes over; its labels count from 1, as 0 is the background.

    Images go in with values in 0..1. Raises UsageError for networks other than ResNets.
    """
    check_resnet(net)
    common = {
        "min_size": sizes.train if len(sizes.train) > 1 else sizes.train[0],
        "max_size": sizes.longest,
        "image_mean": loaded.mean,
        "image_std": loaded.std,
        "box_batch_size_per_image": REGIONS,
    }
    scale = sizes.test / 800
    anchors = tuple(max(1, round(side * scale)) for side in ANCHORS)
    made = _c4(net, num_classes, anchors, common) if kind == "c4" else _fpn(net, num_classes, masks, anchors, common)
    made.transform.min_size = (*sizes.train, sizes.test)  # torchvision tests at the last
    made.transform.torch_choice = _choice_of(sizes.train)
    return made


def _choice_of(sides: tuple[int, ...]) -> Any:
    """A shorter side for a training image, by chance of torch's generator."""
    return lambda _: sides[int(torch.randint(len(sides), (1,)))]


def _c4(net: Backbone, num_classes: int, anchors: tuple[int, ...], common: dict[str, Any]) -> Any:
    return FasterRCNN(
        C4(net),
        rpn_anchor_generator=AnchorGenerator((anchors,), (RATIOS,)),
        rpn_pre_nms_top_n_train=12000,
        rpn_pre_nms_top_n_test=6000,
        box_roi_pool=MultiScaleRoIAlign(["0"], 14, 0),
        box_head=Res5Head(net),
        box_predictor=_small(FastRCNNPredictor(net.num_features, num_classes + 1)),
        **common,
    )


def _fpn(net: Backbone, num_classes: int, masks: bool, anchors: tuple[int, ...], common: dict[str, Any]) -> Any:
    levels = tuple((side,) for side in anchors)
    common = common | {
        "rpn_anchor_generator": AnchorGenerator(levels, (RATIOS,) * len(levels)),
        "rpn_post_nms_top_n_train": 1000,
        "box_roi_pool": MultiScaleRoIAlign(LEVELS, 7, 0),
        "box_head": FastRCNNConvFCHead((FPN_DIM, 7, 7), [FPN_DIM] * 4, [HIDDEN], nn.BatchNorm2d),
        "box_predictor": _small(FastRCNNPredictor(HIDDEN, num_classes + 1)),
    }
    if not masks:
        return FasterRCNN(Pyramid(net), **common)
    return MaskRCNN(
        Pyramid(net),
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, 14, 0),
        mask_head=MaskRCNNHeads(FPN_DIM, (FPN_DIM,) * 4, 1, nn.BatchNorm2d),
        mask_predictor=MaskRCNNPredictor(FPN_DIM, FPN_DIM, num_classes + 1),
        **common,
    )


def check_resnet(net: Backbone) -> None:
    """UsageError for networks without the four stages of a ResNet."""
    if not all(hasattr(net.model, name) for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer4")):
        raise UsageError(
            f"{net.name} is no ResNet: the detectors are Faster and Mask R-CNN on a ResNet's stages.\n"
            "Use weights of resnet50 or another ResNet; `nolabel eval segmentation` takes any network."
        )


def _small(predictor: Any) -> Any:
    """The start of Faster R-CNN's last layers: normal, deviation 0.01 for classes and 0.001 for boxes, bias 0."""
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return predictor
