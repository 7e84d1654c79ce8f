"""The video protocol: the first mask of a clip carried through it by frozen patches, scored as in DAVIS.

Caron et al. 2021 (section 4.2.1), after Jabri et al. 2020; J and F after Perazzi et al. 2016.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as VF

from nolabel.errors import DataError, UsageError
from nolabel.evals.dense.clips import Clip, Clips, Ignored, is_binary, read_objects, scan_clips
from nolabel.evals.dense.contours import boundary_f
from nolabel.evals.dense.iou import jaccard
from nolabel.evals.dense.overlay import write_clip, write_mask
from nolabel.evals.dense.propagation import Rules, propagate, to_pixels
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol, check_at_least, untrained
from nolabel.evals.shared.reading import report_reading
from nolabel.evals.shared.trees import Tree, check_same_size, read_picture, tree_fingerprint
from nolabel.networks.precision import autocast
from nolabel.views import normalize
from nolabel.weights.load import Loaded

NAMES = ("mean", "recall", "decay")


@dataclass(frozen=True)
class VideoConfig(EvalConfig):
    """Settings of the protocol; those of the paper, for weights trained at 224 px."""

    short_side: int | None = None
    """Shorter side of the frames in pixels; by default 480 for weights of 224 px, and in that proportion."""
    num_last_frames: int = 7
    """Frames before this one that vote, beside the first."""
    radius: int = 12
    """Patches up, down, left and right of a patch that may vote."""
    topk: int = 5
    """Patches that vote."""
    temperature: float = 0.1
    """A patch votes with exp(cosine / temperature)."""
    stage: int | None = None
    """Take the map after this of four stages (1 to 4) instead of the last features: finer in a CNN."""
    max_frames: int | None = None
    """Only the first frames of each clip, for a quick look; the numbers are then not those of the protocol."""
    masks: bool = True
    """Write every mask as PNG, and each clip as an animation, beside the result."""


class Scores(NamedTuple):
    """Mean, recall and decay in 0..1 over the frames of one object (Perazzi et al. 2016)."""

    mean: float
    recall: float
    decay: float


def measure(loaded: Loaded, data: str | Path, config: VideoConfig, folders: Folders) -> Measured:
    """J, F and their mean in percent; files: masks, clips with the masks over them."""
    _check(config)
    clips = scan_clips(data)
    clips = clips._replace(clips=tuple(_cut(clip, config.max_frames) for clip in clips.clips))
    num_frames, listed = sum(len(clip.frames) for clip in clips.clips), clips.listed_in or "all there are"
    report_reading({"clips": (len(clips.clips), ""), "frames": (num_frames, "")}, reported=f"clips of {listed}")
    start = time.perf_counter()
    ignored = Ignored([], [])
    metrics, num_frames, seconds = _follow_all(loaded, clips, config, folders.files if config.masks else None, ignored)
    floor = _floor(loaded, clips, config) if config.floor else {}
    return Measured(
        metrics=metrics,
        data=_describe(clips, len(metrics["objects"])),
        settings=_settings(loaded, config),
        notes=[f"only the first {config.max_frames} frames of a clip"] * bool(config.max_frames) + ignored.notes(),
        floor=floor,
        times={
            "seconds": {"all": time.perf_counter() - start},
            "seconds_per_frame": seconds / max(num_frames, 1),
            "device": config.device,
        },
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """The headline numbers, for the table."""
    return {
        "J&F": metrics["j_and_f"],
        "J": metrics["j"]["mean"],
        "J recall": metrics["j"]["recall"],
        "F": metrics["f"]["mean"],
        "F recall": metrics["f"]["recall"],
    }


def over_time(values: Sequence[float]) -> Scores:
    """Mean over the frames, share above 0.5, and how much the last quarter is worse than the first.

    The quarters share their border frames, as in the official code.
    """
    frames = torch.tensor(values, dtype=torch.float64)
    edges = [math.floor(1 + i * (len(frames) - 1) / 4 + 0.5 + 1e-10) - 1 for i in range(5)]
    quarters = [frames[edges[i] : edges[i + 1] + 1] for i in (0, 3)]
    return Scores(
        float(frames.mean()), float((frames > 0.5).double().mean()), float(quarters[0].mean() - quarters[1].mean())
    )


def score(predicted: Sequence[Tensor], truth: Sequence[Tensor], objects: Sequence[int]) -> list[tuple[Scores, Scores]]:
    """J and F of each of `objects` over the frames; masks (H, W) hold their ids and 0."""
    scores = []
    for i in objects:
        pairs = [(p == i, t == i) for p, t in zip(predicted, truth, strict=True)]
        scores.append(
            (over_time([float(jaccard(p, t)) for p, t in pairs]), over_time([boundary_f(p, t) for p, t in pairs]))
        )
    return scores


def _floor(loaded: Loaded, clips: Clips, config: VideoConfig) -> dict[str, Any]:
    """Means for the untrained network and for the first mask, left where it is."""
    networks = {"random_weights": untrained(loaded, config.seed), "first_mask": None}
    rows = {name: _follow_all(network, clips, config)[0] for name, network in networks.items()}
    return {name: {key: row[key] for key in row if key != "objects"} for name, row in rows.items()}


def _follow_all(
    loaded: Loaded | None,
    clips: Clips,
    config: VideoConfig,
    pictures: Path | None = None,
    ignored: Ignored | None = None,
) -> tuple[dict[str, Any], int, float]:
    """The metrics of all clips, the number of frames that were computed, and the seconds they took.

    `ignored` gets the numbers that are not scored.
    """
    objects: dict[str, tuple[Scores, Scores]] = {}
    num_frames, seconds = 0, 0.0
    for clip in clips.clips:
        binary = is_binary(clips.tree, str(clip.masks[0]))
        first = read_objects(clips.tree, str(clip.masks[0]), binary)
        ids = torch.unique(first[first > 0]).tolist()  # a number may be missing
        if not ids:
            raise DataError(f"The first mask of {clip.name} is empty: there is no object to follow.")
        start = time.perf_counter()
        if loaded is None:
            masks = [first] * (len(clip.frames) - 1)
        else:
            masks = list(follow(loaded, clips.tree, clip, first, config))
        seconds, num_frames = seconds + time.perf_counter() - start, num_frames + len(masks)
        scored = [i for i in range(1, len(clip.frames) - 1) if clip.masks[i] is not None]
        truth = [_truth(clips.tree, clip, i, first, binary) for i in scored]
        if ignored is not None:
            ignored.add(clip, ids, truth)
        for number, pair in zip(ids, score([masks[i - 1] for i in scored], truth, ids), strict=True):
            objects[f"{clip.name}/{number}"] = pair
        if pictures is not None:
            _write(pictures, clips.tree, clip, [first, *masks])
    return _summary(objects), num_frames, seconds


def follow(loaded: Loaded, tree: Tree, clip: Clip, first: Tensor, config: VideoConfig) -> Iterator[Tensor]:
    """Object ids (H, W) uint8 of the second frame of a clip, the third, ..., from the mask (H, W) of the first."""
    rules = Rules(config.num_last_frames, config.radius, config.topk, config.temperature)
    size = (first.shape[0], first.shape[1])
    net_size = frame_size(*size, _short_side(loaded, config), loaded.backbone.patch_size)
    features = _features(loaded, tree, clip, size, net_size, config)
    start = next(features)
    channels = F.one_hot(first, int(first.max()) + 1).permute(2, 0, 1).float()
    small = F.interpolate(channels[None], size=start.shape[:2], mode="nearest-exact")[0].to(start.device)

    def frames() -> Iterator[Tensor]:
        yield start
        yield from features

    for soft in propagate(frames(), small, rules):
        ids = to_pixels(soft, net_size)
        yield VF.resize(ids[None], list(size), VF.InterpolationMode.NEAREST_EXACT)[0].byte().cpu()


def frame_size(height: int, width: int, short_side: int, patch_size: int | None) -> tuple[int, int]:
    """Height and width that a network sees of a frame: at 480 px the longer side is cut down to a multiple of 64.

    At other sizes the multiple is in proportion; both sides are multiples of the patch size.
    """
    step = patch_size or 1
    short = max(1, round(short_side / step)) * step
    multiple = max(1, round(64 * short_side / 480 / step)) * step
    ratio = max(height, width) / min(height, width)
    long = max(short, math.floor(short * ratio / multiple) * multiple)
    return (short, long) if height <= width else (long, short)


def _features(
    loaded: Loaded, tree: Tree, clip: Clip, size: tuple[int, int], net_size: tuple[int, int], config: VideoConfig
) -> Iterator[Tensor]:
    """The patches (h, w, D) of each frame."""
    net = loaded.backbone.to(config.device).eval()
    for name in clip.frames:
        picture = read_picture(tree, name)
        if (picture.shape[1], picture.shape[2]) != size:
            check_same_size(picture, torch.empty(size), name, str(clip.masks[0]))
        x = VF.resize(picture, list(net_size), VF.InterpolationMode.BILINEAR, antialias=True)
        x = normalize(x[None].to(config.device), loaded.mean, loaded.std)
        with torch.no_grad(), autocast(config.device, config.precision):
            if config.stage is not None:
                yield net.stages(x)[config.stage - 1][0].permute(1, 2, 0)
            else:
                features = net(x)
                yield features.patches[0].unflatten(0, features.grid)


def _truth(tree: Tree, clip: Clip, index: int, first: Tensor, binary: bool) -> Tensor:
    name = str(clip.masks[index])
    truth = read_objects(tree, name, binary)
    if truth.shape != first.shape:
        raise DataError(f"{name} and {clip.masks[0]} differ in size: all masks of a clip have the size of its frames.")
    return truth


def _cut(clip: Clip, max_frames: int | None) -> Clip:
    return clip._replace(frames=clip.frames[:max_frames], masks=clip.masks[:max_frames])


def _summary(objects: Mapping[str, tuple[Scores, Scores]]) -> dict[str, Any]:
    """Means over all objects of all clips, in percent."""
    percent = [{key: [round(100 * x, 4) for x in pair[i]] for key, pair in objects.items()} for i in (0, 1)]
    means = [
        [round(100 * sum(pair[i][n] for pair in objects.values()) / len(objects), 4) for n in range(3)] for i in (0, 1)
    ]
    j, f = (dict(zip(NAMES, values, strict=True)) for values in means)
    each = {key: {"j": percent[0][key][0], "f": percent[1][key][0]} for key in objects}
    return {"j_and_f": round((j["mean"] + f["mean"]) / 2, 4), "j": j, "f": f, "objects": each}


def _write(folder: Path, tree: Tree, clip: Clip, masks: Sequence[Tensor]) -> None:
    """The masks as PNG files with DAVIS's palette, and an animation of the clip with the masks over it."""
    for name, mask in zip(clip.frames, masks, strict=True):
        write_mask(folder / "masks" / clip.name / f"{Path(name).stem}.png", mask)
    frames = (read_picture(tree, name) for name in clip.frames)
    write_clip(folder / f"{clip.name.replace('/', '-')}.webp", frames, masks)


def _check(config: VideoConfig) -> None:
    check_at_least(config, 1, "short_side")
    check_at_least(config, 0, "num_last_frames", "radius")
    check_at_least(config, 1, "topk")
    check_at_least(config, 3, "max_frames")
    if not config.temperature >= 0.02:
        raise UsageError(
            f"temperature must be at least 0.02, not {config.temperature}: exp(1 / temperature) overflows."
        )
    if config.stage is not None and not 1 <= config.stage <= 4:
        raise UsageError(f"stage is 1, 2, 3 or 4, not {config.stage}.")


def _short_side(loaded: Loaded, config: VideoConfig) -> int:
    return config.short_side or round((config.image_size or loaded.image_size) * 480 / 224)


def _settings(loaded: Loaded, config: VideoConfig) -> dict[str, Any]:
    names = ("num_last_frames", "radius", "topk", "temperature", "stage", "max_frames")
    return {"short_side": _short_side(loaded, config), **{name: getattr(config, name) for name in names}}


def _describe(clips: Clips, num_objects: int) -> dict[str, Any]:
    files = [name for clip in clips.clips for name in (*clip.frames, *filter(None, clip.masks))]
    return {
        "num_clips": len(clips.clips),
        "num_frames": sum(len(clip.frames) for clip in clips.clips),
        "num_objects": num_objects,
        "list": clips.listed_in,
        "fingerprint": tree_fingerprint(clips.tree, files),
    }


PROTOCOL = Protocol("video", 1, "DAVIS, %", VideoConfig, measure, columns, check_data=scan_clips)
