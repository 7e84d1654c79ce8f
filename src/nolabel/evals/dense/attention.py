"""The attention protocol: does a head of the last block cover an object? (Caron et al. 2021, section 4.2.2.)

The class token's attention, cut to the patches that hold 60 % or 80 % of it, against each object's mask by the Jaccard
index; the best head of each object counts.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as VF

from nolabel.errors import DataError, UsageError
from nolabel.evals.dense.iou import VOID, jaccard
from nolabel.evals.dense.layouts import Masked, check_masks, read_pair, report_masks, scan_masked
from nolabel.evals.dense.mask_folders import Pairs
from nolabel.evals.dense.patches import fit_size
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol, check_at_least, untrained
from nolabel.evals.shared.trees import check_same_size, read_mask, tree_fingerprint
from nolabel.networks.backbones import Backbone
from nolabel.networks.inspect import cosine_to_pooled, mass_mask
from nolabel.networks.precision import autocast
from nolabel.views import normalize
from nolabel.weights.load import Loaded

NOT_OBJECTS = ("background", "0")
"""Classes that are no object: VOC's first, and id 0 of masks whose classes have no names."""


@dataclass(frozen=True)
class AttentionConfig(EvalConfig):
    """Settings of the protocol; those of the paper, for weights trained at 224 px."""

    keep: tuple[float, ...] = (0.6, 0.8)
    """Shares of the attention that the masks hold: 60 % in the paper's main text, 80 % in its appendix."""
    short_side: int | None = None
    """Shorter side of the images in pixels; by default 480 for weights of 224 px, and in that proportion."""
    classes: str | None = None
    """File with `id: name` lines; by default that of the data, or the ids in the masks."""
    void: int | None = None
    """One more id that counts for nothing, beside classes named void and 255."""
    max_images: int | None = None
    """At most so many images, evenly over the split."""


def measure(loaded: Loaded, data: str | Path, config: AttentionConfig, _folders: Folders) -> Measured:
    """Mean Jaccard index of the best head in percent; every image is decoded once for the network and its floor."""
    _check(config)
    masked, split = _reported(scan_masked(data, config.classes, config.void), config.max_images)
    report_masks(masked, split)
    start = time.perf_counter()
    networks = {"weights": loaded} | ({"random_weights": untrained(loaded, config.seed)} if config.floor else {})
    scores = _score_images(networks, masked, split, config)
    seconds = time.perf_counter() - start
    rows = {name: _summary(objects, config.keep) for name, objects in scores.items()}
    metrics = rows.pop("weights")
    notes = [*masked.notes]
    if not loaded.backbone.has_attention:
        notes.append("no class token: the map is the cosine of each location with the pooled feature")
    return Measured(
        metrics=metrics,
        data=_describe(masked, split, metrics["num_objects"]),
        settings=_settings(loaded, config),
        notes=notes,
        floor=rows if config.floor else {},
        times={"seconds": {"all": seconds}, "device": config.device},
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """The best head by the share of attention that is kept, for the table."""
    return {f"Jaccard {share} %": value for share, value in metrics["jaccard"].items()}


def head_scores(maps: Tensor, truth: Tensor, objects: Sequence[int], keep: Sequence[float]) -> Tensor:
    """Jaccard index (objects, shares, heads) of masks from maps (H, rows, columns) with classes `truth` (H, W).

    The masks are enlarged to the truth's size by nearest neighbours; VOID pixels count for nothing.
    """
    size = (truth.shape[0], truth.shape[1])
    masks = torch.stack([mass_mask(maps, share) for share in keep]).float()
    large = F.interpolate(masks, size=size, mode="nearest-exact").bool()  # (shares, heads, H, W)
    known = truth != VOID
    return torch.stack([jaccard(large, (truth == i).expand_as(large), known) for i in objects])


def attention_of(backbone: Backbone, x: Tensor) -> Tensor:
    """Maps (heads, rows, columns) of a normalised image (1, 3, h, w): attention, or a substitute.

    Without a class token it is the cosine of each location with the pooled feature, its smallest value taken off.
    """
    with torch.no_grad():
        if backbone.has_attention:
            maps, grid = backbone.attention(x)
            return maps[0].float().cpu().view(-1, *grid)
        features = backbone(x)
        cosine = cosine_to_pooled(features)
        return (cosine - cosine.min()).float().cpu().view(-1, *features.grid)


def _score_images(
    networks: Mapping[str, Loaded], masked: Masked, split: str, config: AttentionConfig
) -> dict[str, list[Tensor]]:
    """For each row of the table, for each object, scores (shares, heads); `whole_image` marks every pixel."""
    scores: dict[str, list[Tensor]] = {name: [] for name in (*networks, "whole_image")}
    nets = {name: network.backbone.to(config.device).eval() for name, network in networks.items()}
    loaded = networks["weights"]
    for index in range(len(masked.splits[split].pictures)):
        picture, truth, objects = _objects(masked, split, index)
        if not objects:
            continue
        size = fit_size(truth.shape[0], truth.shape[1], _short_side(loaded, config), loaded.backbone.patch_size)
        small = VF.resize(picture, list(size), InterpolationMode(loaded.interpolation), antialias=True)
        x = normalize(small[None].to(config.device), loaded.mean, loaded.std)
        for name, net in nets.items():
            with autocast(config.device, config.precision):
                maps = attention_of(net, x)
            scores[name] += head_scores(maps, truth, objects, config.keep).unbind(0)
        scores["whole_image"] += head_scores(torch.ones(1, 1, 1), truth, objects, config.keep).unbind(0)
    if not scores["weights"]:
        raise DataError("No image has an object: every pixel is background or void.")
    return scores


def _objects(masked: Masked, split: str, index: int) -> tuple[Tensor, Tensor, list[int]]:
    """An image, its objects as ids (H, W) with VOID, and which ids are objects.

    PASCAL VOC marks single objects in SegmentationObject; elsewhere all of a class in an image are one object.
    """
    pairs = masked.splits[split]
    name = pairs.masks[index].replace("SegmentationClass/", "SegmentationObject/")
    if masked.layout == "PASCAL VOC" and name in masked.tree.names:
        picture, _ = read_pair(masked, split, index)
        mask = read_mask(masked.tree, name)
        check_same_size(picture, mask, pairs.pictures[index], name)
        truth = torch.where(mask == 255, VOID, mask)
        return picture, truth, [i for i in torch.unique(truth).tolist() if i > 0]
    picture, truth = read_pair(masked, split, index)
    names = masked.classes.names
    return picture, truth, [i for i in torch.unique(truth).tolist() if i != VOID and names[i] not in NOT_OBJECTS]


def _reported(masked: Masked, max_images: int | None) -> tuple[Masked, str]:
    """The split to report, test before val before all before train, cut to `max_images`."""
    split = next(s for s in ("test", "val", "all", "train") if s in masked.splits)
    pairs = masked.splits[split]
    count = len(pairs.pictures)
    if max_images is None or max_images >= count:
        return masked, split
    chosen = [i * count // max_images for i in range(max_images)]
    few = Pairs(tuple(pairs.pictures[i] for i in chosen), tuple(pairs.masks[i] for i in chosen))
    notes = [*masked.notes, f"{max_images} of {count} images"]
    return masked._replace(splits={**masked.splits, split: few}, notes=notes), split


def _summary(scores: Sequence[Tensor], keep: Sequence[float]) -> dict[str, Any]:
    """Means over the objects in percent: of each object's best head, and of the one head that is best on the whole."""
    table = torch.stack(list(scores))  # (objects, shares, heads)
    best, single = table.max(2).values.mean(0), table.mean(0).max(1).values
    names = [f"{100 * share:g}" for share in keep]
    return {
        "jaccard": {name: round(100 * float(value), 4) for name, value in zip(names, best, strict=True)},
        "one_head": {name: round(100 * float(value), 4) for name, value in zip(names, single, strict=True)},
        "num_objects": len(table),
        "num_heads": table.shape[2],
    }


def _check(config: AttentionConfig) -> None:
    if not config.keep or not all(0 < share <= 1 for share in config.keep):
        raise UsageError(f"keep is a share of the attention, above 0 and at most 1, not {config.keep}.")
    check_at_least(config, 1, "short_side", "max_images")


def _short_side(loaded: Loaded, config: AttentionConfig) -> int:
    return config.short_side or round((config.image_size or loaded.image_size) * 480 / 224)


def _settings(loaded: Loaded, config: AttentionConfig) -> dict[str, Any]:
    maps = "attention" if loaded.backbone.has_attention else "cosine to pooled"
    return {"short_side": _short_side(loaded, config), "keep": config.keep, "maps": maps}


def _describe(masked: Masked, split: str, num_objects: int) -> dict[str, Any]:
    pairs = masked.splits[split]
    return {
        "layout": masked.layout,
        "num_images": len(pairs.pictures),
        "num_objects": num_objects,
        "reported_on": split,
        "fingerprint": tree_fingerprint(masked.tree, [*pairs.pictures, *pairs.masks]),
    }


PROTOCOL = Protocol("attention", 1, "attention masks, %", AttentionConfig, measure, columns, check_masks)
