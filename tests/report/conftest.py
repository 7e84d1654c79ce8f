"""A believable run folder, written without training anything."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw, ImageFilter

from nolabel.files import append_jsonl, write_json
from nolabel.runs.folder import Run

CONFIG: dict[str, Any] = {
    "method": {
        "global_size": 64,
        "local_size": 32,
        "num_local": 6,
        "num_prototypes": 2048,
        "momentum": 0.9995,
    },
    "optim": {"lr": 0.0005, "weight_decay": 0.04, "weight_decay_end": 0.4, "clip": 3.0, "warmup_epochs": 5},
    "recipe": "dino-small",
    "data": "pictures/birds",
    "out": "runs/birds",
    "labels": "pictures/birds-labelled",
    "backbone": "resnet18",
    "backbone_args": ["output_stride=8"],
    "epochs": 55,
    "steps": None,
    "batch_size": 128,
    "precision": "bf16",
    "seed": 0,
    "workers": 2,
}
START: dict[str, Any] = {
    "time": "2026-11-20T08:02:11+00:00",
    "event": "start",
    "step": 0,
    "command": "nolabel train dino-small pictures/birds --out runs/birds --labels pictures/birds-labelled",
    "versions": {"nolabel": "0.1.0", "python": "3.11.9", "torch": "2.15.0", "timm": "1.0.31"},
    "device": "cpu, 2 cores",
    "changed": {"method.num_local": 8, "optim.lr": 0.001},
}
EVENTS = (
    {"time": "2026-11-20T08:40:00+00:00", "event": "checkpoint", "step": 1000},
    {"time": "2026-11-20T08:51:20+00:00", "event": "stopped", "step": 1400, "reason": "SIGTERM"},
    {
        "time": "2026-11-20T08:55:03+00:00",
        "event": "start",
        "step": 1400,
        "command": "nolabel resume runs/birds",
    },
    {"time": "2026-11-20T10:01:44+00:00", "event": "done", "step": 4015},
)
BAD = (
    {
        "name": "thrush/IMG_0031.jpg",
        "reason": "truncated",
        "detail": "ends after 18 231 of 40 960 bytes",
        "size": 18231,
    },
    {"name": "wren/.thumb.png", "reason": "empty", "detail": "0 bytes", "size": 0},
    {
        "name": "robin/vögel_07.tif",
        "reason": "not an image",
        "detail": "starts with b'<!DOCTYPE'",
        "size": 912,
    },
)


def metric(step: int, total: int, rng: random.Random) -> dict[str, Any]:
    """One line of metrics of a DINO run that learns."""
    t = step / total
    entropy = math.log(2048) * (1 - 0.55 * (1 - math.exp(-4 * t))) + rng.gauss(0, 0.03)
    kl = 0.05 + 1.3 * (1 - math.exp(-6 * t)) * (1 - 0.35 * t) + rng.gauss(0, 0.04)
    warm = min(1.0, t / 0.1)
    return {
        "step": step,
        "epoch": step / 73,
        "loss": entropy + kl,
        "lr": 5e-4 * (warm if warm < 1 else 0.5 + 0.5 * math.cos(math.pi * (t - 0.1) / 0.9)),
        "weight_decay": 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * t)),
        "momentum": 1 - 0.0005 * 0.5 * (1 + math.cos(math.pi * t)),
        "teacher_temp": min(0.07, 0.04 + 0.03 * t / 0.3),
        "teacher_entropy": entropy,
        "teacher_student_kl": kl,
        "grad_norm": None if step == 11 * (total // 60) else 0.4 + 1.8 * math.exp(-5 * t) + abs(rng.gauss(0, 0.12)),
        "img_per_s": 74 + rng.gauss(0, 1.5) - (14 if 0.33 < t < 0.37 else 0),
        "data_wait": max(0.0, 0.03 + rng.gauss(0, 0.012) + (0.2 if 0.33 < t < 0.37 else 0)),
    }


def write_run(folder: Path, total: int = 4015, every: int = 11) -> Run:
    """A finished run of `total` steps with a line of metrics each `every` steps."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    write_json(folder / "status.json", {"state": "done", "step": total, "reason": "", "exit_code": 0})
    rng = random.Random(0)
    for event in (START, *EVENTS):
        append_jsonl(folder / "events.jsonl", event)
    for bad in BAD:
        append_jsonl(folder / "bad_files.jsonl", bad)
    append_jsonl(folder / "metrics.jsonl", {"step": 0, "knn": 27.4, "knn_untrained": 27.4, "knn_raw": 33.0})
    for step in range(every, total + 1, every):
        append_jsonl(folder / "metrics.jsonl", metric(step, total, rng))
        if step // every % 20 == 0:
            knn = 27.4 + 31 * (1 - math.exp(-3.2 * step / total)) + rng.gauss(0, 0.5)
            append_jsonl(folder / "metrics.jsonl", {"step": step, "knn": knn})
    result = {
        "protocol": "knn",
        "version": 1,
        "metrics": {"top1": {"10": 58.31, "20": 57.92}, "top5": {"10": 88.2, "20": 88.9}, "k": 10},
        "floor": {
            "raw_pixels": {"top1": {"10": 33.4, "20": 33.0}, "top5": {"10": 70.1, "20": 71.5}},
            "random_weights": {"top1": {"10": 27.9, "20": 27.4}, "top5": {"10": 66.0, "20": 66.8}},
        },
        "data": {"name": "birds-labelled"},
        "seed": 0,
    }
    (folder / "weights").mkdir()
    (folder / "eval" / "attention").mkdir(parents=True)
    write_json(folder / "eval" / "knn.json", result)
    for i in range(9):
        _sheet(i / 8).save(folder / "eval" / "attention" / f"step-{total * i // 8:08d}.webp", quality=80)
    return Run(folder)


def _sheet(progress: float) -> Image.Image:
    """A drawn stand-in for a contact sheet: eight things, and maps that come to follow them."""
    page = Image.new("RGB", (584, 610), (17, 20, 26))
    for i in range(8):
        rng = random.Random(i)
        picture = Image.radial_gradient("L").resize((136, 136)).convert("RGB")
        tint = Image.new("RGB", (136, 136), tuple(rng.randrange(256) for _ in range(3)))
        picture = Image.blend(picture, tint, 0.6)
        mask = Image.new("L", (136, 136))
        x, y, r = rng.randrange(40, 96), rng.randrange(40, 96), rng.randrange(20, 38)
        ImageDraw.Draw(mask).regular_polygon((x, y, r), rng.randrange(3, 8), fill=255)
        picture.paste(tuple(rng.randrange(256) for _ in range(3)), mask=mask)
        noise = Image.frombytes("L", (8, 8), rng.randbytes(64)).resize((136, 136))
        seen = (
            Image.blend(noise, mask.filter(ImageFilter.GaussianBlur(8)), progress).resize((8, 8)).resize((136, 136), 0)
        )
        heat = Image.merge("RGB", (seen.point(lambda v: v * v // 255), seen, seen.point(lambda v: 130 - v // 3)))
        at = 8 + i % 4 * 144, 8 + i // 4 * 290
        page.paste(picture, at)
        page.paste(heat, (at[0], at[1] + 138))
    ImageDraw.Draw(page).text((8, 590), "A drawn stand-in", (146, 155, 170))
    return page


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Writes a run of the given length into a fresh folder."""
    return lambda **settings: write_run(tmp_path / "birds", **settings)


@pytest.fixture
def page_data() -> Callable[[str], list[dict[str, Any]]]:
    """The JSON of the charts in a page."""

    def read(html: str) -> list[dict[str, Any]]:
        text = html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
        found: list[dict[str, Any]] = json.loads(text, parse_constant=lambda name: pytest.fail(name))
        return found

    return read
