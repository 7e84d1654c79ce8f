"""How fast images become views, on one core: one table, contenders interleaved, ratios within one run.

    python benchmarks/speed.py [--rounds 7] [--seed 0] [--only WORD]

Every contender gets the same bytes. nolabel and the PIL reference get the same drawn parameters and end with the same
normalised float32 tensors; `lightly`, where it is installed, draws its own with equal sizes and strengths. A figure
is CPU time of one thread in milliseconds an image, as median (lowest to highest) over the rounds; the wall time stands
beside it. A ratio is the median over the rounds of the reference's time divided by that of nolabel.
"""

import argparse
import gc
import io
import statistics
import time
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from make_photos import jpeg, photo, webp
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as pil

from nolabel.data.decode import decode, load, open_image
from nolabel.data.loader import cut, whole
from nolabel.data.packing import resized
from nolabel.views import IMAGENET_MEAN, IMAGENET_STD, Drawn, View, draw, fastest, normalize, view_function

try:
    from lightly.transforms import DINOTransform
except ImportError:
    DINOTransform = None

FASTEST = fastest()
Contender = Callable[[bytes, int], object]
"""A file and the number of the image -> its views."""


class Row(NamedTuple):
    name: str
    source: str
    contenders: dict[str, Contender]
    """By name; the first is ours, the last the reference."""


def dino(size: int, local_size: int, num_local: int) -> tuple[View, ...]:
    """DINO's views."""
    globals_ = View(size, (0.4, 1.0), blur=1.0), View(size, (0.4, 1.0), blur=0.1, solarize=0.2)
    return (*globals_, *[View(local_size, (0.05, 0.4), blur=0.5)] * num_local)


def ours(views: tuple[View, ...], full_decode: bool = False, engine: Literal["torch", "numba"] = FASTEST) -> Contender:
    """What the loader does for an image, and the normalisation of the training step."""
    make = view_function(engine)

    def run(data: bytes, number: int) -> list[Tensor]:
        crops = cut(data, views, [(0, 0, number, v) for v in range(len(views))], full_decode, make).views
        return [normalize(crop, IMAGENET_MEAN, IMAGENET_STD) for crop in crops]

    return run


def packed(run: Contender) -> Contender:
    """The same on what `nolabel pack --short-side 256` has made of the files."""
    small = lru_cache(lambda data: resized(data, 256, 95) or data)
    return lambda data, number: run(small(data), number)


def decode_only(views: tuple[View, ...]) -> Contender:
    """What a worker does for an image with `--augment device`."""
    return lambda data, number: whole(data, views, [(0, 0, number, v) for v in range(len(views))]).views


def reference(views: tuple[View, ...]) -> Contender:
    """What the authors' codes do: Pillow for everything, view by view, then a normalised float tensor."""

    def run(data: bytes, number: int) -> list[Tensor]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        drawn = [draw(view, (0, 0, number, v), image.height, image.width) for v, view in enumerate(views)]
        return [plain(image, view, parameters) for view, parameters in zip(views, drawn, strict=True)]

    return run


def plain(image: Image.Image, view: View, drawn: Drawn) -> Tensor:
    """One view with Pillow, as a normalised tensor."""
    return pil.normalize(pil.to_tensor(plain_pixels(image, view, drawn)), IMAGENET_MEAN, IMAGENET_STD)


def plain_pixels(image: Image.Image, view: View, drawn: Drawn) -> Image.Image:
    """One view with Pillow."""
    top, left, height, width = drawn.box
    mode = pil.InterpolationMode(view.interpolation)
    x = pil.resized_crop(image, top, left, height, width, [view.size] * 2, mode)
    if drawn.flip:
        x = pil.hflip(x)
    for name, factor in drawn.jitter:
        x = getattr(pil, f"adjust_{name}")(x, factor)
    if drawn.grayscale:
        x = pil.to_grayscale(x, num_output_channels=3)
    if drawn.sigma:
        x = x.filter(ImageFilter.GaussianBlur(drawn.sigma))
    if drawn.solarize:
        x = ImageOps.solarize(x)
    return x


def lightly(size: int, local_size: int, num_local: int) -> dict[str, Contender]:
    """Its DINO views with the sizes and strengths of `dino`."""
    if DINOTransform is None:
        return {}
    transform = DINOTransform(
        global_crop_size=size,
        local_crop_size=local_size,
        n_local_views=num_local,
        gaussian_blur=(1.0, 0.1, 0.5),
    )

    return {"lightly": lambda data, _: transform(Image.open(io.BytesIO(data)).convert("RGB"))}


SOURCES: dict[str, Callable[[int], bytes]] = {
    "500x375 JPEG": lambda seed: jpeg(photo(375, 500, seed), 95_000),
    "4000x3000 JPEG": lambda seed: jpeg(photo(3000, 4000, seed, falloff=1.6), 1_100_000),
    "224x224 WebP": lambda seed: webp(photo(224, 224, seed)),
}
"""A file of each kind from a seed."""


@cache
def files(source: str, seed: int) -> list[bytes]:
    """Made when a row asks for them: the large ones take longer than a row."""
    return [SOURCES[source](seed + i) for i in range(2 if source.startswith("4000") else 8)]


def rows() -> list[Row]:
    pipelines = (
        ("500x375 JPEG", (224, 96, 8)),
        ("500x375 JPEG", (224, 96, 10)),
        ("500x375 JPEG", (224, 96, 0)),
        ("4000x3000 JPEG", (224, 96, 8)),
        ("224x224 WebP", (64, 32, 4)),
    )
    found = [Row(f"decode {name}", name, decoders(name)) for name in SOURCES]
    for name, sizes in pipelines:
        size, local_size, num_local = sizes
        title = f"2 x {size}" + (f" + {num_local} x {local_size}" if num_local else "") + f", {name}"
        views = dino(*sizes)
        mine = {f"nolabel, {FASTEST}": ours(views), "nolabel, worker of --augment device": decode_only(views)}
        if FASTEST != "torch":
            mine["nolabel, torch"] = ours(views, engine="torch")
        if name.startswith("4000"):
            mine["nolabel, full decode"] = ours(views, full_decode=True)
            mine |= {f"{word}, --short-side 256": packed(run) for word, run in mine.items() if "full" not in word}
        found.append(Row(title, name, {**mine, **lightly(*sizes), "PIL": reference(views)}))
    return found


def decoders(name: str) -> dict[str, Contender]:
    found: dict[str, Contender] = {"nolabel": lambda data, _: decode(data)}
    if name.startswith("4000"):
        found["nolabel, at 1/4"] = lambda data, _: load(open_image(data), 4)
    return {**found, "PIL": lambda data, _: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))}


class Time(NamedTuple):
    cpu: float
    wall: float


def measure(row: Row, files: list[bytes], rounds: int, seconds: float = 0.3) -> dict[str, list[Time]]:
    """Seconds an image of each contender in each round; a round takes them in turn, for about `seconds` each."""
    repeats = {}
    for name, run in row.contenders.items():
        time_of(run, files, 1)  # warm
        repeats[name] = max(1, round(seconds / (time_of(run, files, 1).cpu * len(files))))
    times: dict[str, list[Time]] = {name: [] for name in row.contenders}
    for _ in range(rounds):
        for name, run in row.contenders.items():
            times[name].append(time_of(run, files, repeats[name]))
    return times


def time_of(run: Contender, files: list[bytes], repeats: int) -> Time:
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    for number in range(repeats * len(files)):
        run(files[number % len(files)], number)
    num = repeats * len(files)
    return Time((time.process_time() - cpu) / num, (time.perf_counter() - wall) / num)


def report(row: Row, files: list[bytes], times: dict[str, list[Time]]) -> None:
    size = statistics.mean(map(len, files)) / 1000
    base = times[list(row.contenders)[-1]]
    for name, own in times.items():
        cpu = sorted(1000 * t.cpu for t in own)
        ratios = sorted(b.cpu / o.cpu for b, o in zip(base, own, strict=True))
        spread = f"{statistics.median(cpu):.2f} ({cpu[0]:.2f} to {cpu[-1]:.2f})"
        wall = f"{1000 * statistics.median(t.wall for t in own):.2f}"
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {row.name}, {size:.0f} kB | {name} | {spread} | {wall} | {ratio} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0, help="of the photos")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| row | contender | CPU ms per image | wall ms | times faster than PIL |\n|---|---|---|---|---|", flush=True)
    for row in rows():
        if options.only in row.name:
            made = files(row.source, options.seed)
            report(row, made, measure(row, made, options.rounds))


if __name__ == "__main__":
    main()
