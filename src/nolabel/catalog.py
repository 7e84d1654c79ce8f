"""Tables that `nolabel list` and help texts print. Only data, without torch."""

from importlib.resources import files
from typing import NamedTuple

BACKBONES: dict[str, str] = {
    "vit_tiny_patch16_224": "ViT-Ti/16, 5.5 M parameters",
    "vit_small_patch16_224": "ViT-S/16, 21.7 M, DINO's workhorse",
    "vit_small_patch8_224": "ViT-S/8, 21.7 M, finer maps at four times the cost",
    "vit_base_patch16_224": "ViT-B/16, 85.8 M",
    "vit_base_patch8_224": "ViT-B/8, 85.8 M",
    "resnet18": "ResNet-18, 11.2 M, quick on a CPU",
    "resnet50": "ResNet-50, 23.5 M",
    "xcit_small_12_p16_224": "XCiT-S12/16, 25.9 M",
    "convnext_tiny": "ConvNeXt-T, 27.8 M",
}


class Measured(NamedTuple):
    """A network of timm that gives Features, as measured by benchmarks/backbones.py."""

    family: str
    """Module of timm."""
    sizes: str
    """Sizes of images that the network takes, in words."""


def measured_backbones() -> dict[str, Measured]:
    """One or two networks of each family of timm by name; benchmarks/backbones.py writes the file."""
    text = (files("nolabel") / "networks/timm_networks.txt").read_text(encoding="utf-8")
    rows = [line.split(maxsplit=2) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: Measured(family, sizes) for family, name, sizes in rows}


PROTOCOLS: dict[str, str] = {
    "knn": "weighted k nearest neighbours on frozen features",
    "linear": "linear classifiers on frozen features, a sweep of settings in one pass",
    "lowshot": "logistic regression on a few labelled images per class",
    "finetune": "the whole network trained on all labels or a share of them (DeiT's recipe)",
    "retrieval": "other pictures of the same place or thing (revisited Oxford and Paris)",
    "copies": "the original of a changed copy among distractors (Copydays)",
    "video": "a mask carried through a clip by frozen patches (DAVIS: J and F)",
    "attention": "objects under the heads of the last block (Jaccard index)",
    "segmentation": "mean IoU by k-NN and linear on frozen patches, and of a fine-tuned FCN",
    "detection": "AP of Faster R-CNN (C4) or Mask R-CNN (FPN) trained from a ResNet (VOC, COCO)",
    "all": "every protocol that the data allows, in one table",
}


SOURCES: dict[str, str] = {
    "folder": "a folder of images",
    "zip": "a zip of one",
    "shards": "shards",
    "list": "a text file of paths",
}
"""Words for each key of `nolabel.data.sources.SOURCES`, in help texts and errors."""


def describe_sources() -> str:
    """All that DATA can be: `a folder of images, a zip of one, ..., or a text file of paths`."""
    *first, last = SOURCES.values()
    return f"{', '.join(first)}, or {last}"
