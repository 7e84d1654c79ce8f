"""What a training step of DINO costs: one table, contenders in turn, ratios within one run.

    python benchmarks/step.py                                  # ViT-S/16, 2 x 224 + 8 x 96, K = 65,536, bf16
    python benchmarks/step.py --backbone vit_tiny_patch16_224 --batch 4 --rounds 5
    python benchmarks/step.py --device cuda --batch 128 --curves
    python benchmarks/step.py --tiny                           # to see it run

Contenders (`plain.py`): nolabel, the plain eager reference from the same weights, `lightly` where it is installed; the
reference also in fp32. Before anything is timed the first loss of nolabel must be the reference's to 0.1 % in fp32 and
2 % in bf16. A figure is milliseconds: CPU time of this process on a CPU, time on the wall after all that was launched
on a GPU; median (lowest to highest) over the rounds. Memory is the peak of what torch allocates in a step beyond what
lies there before it; an image's is the difference to a step of twice the batch, divided. Operations and waits are
those of a step: waits are numbers that the host reads. The floor is FLOPs / the matmul rate measured here in the same
precision.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import plain
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nolabel.config import TrainConfig, find_device, resolve
from nolabel.data.images import Images
from nolabel.methods.dino import DINOConfig
from nolabel.training.job import Job, build


class Operations(TorchDispatchMode):
    """Counts what is asked of the device, and how often the host reads a number of it."""

    number = waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.number += not func.is_view
        self.waits += func.name() in ("aten::_local_scalar_dense", "aten::nonzero")
        return func(*args, **(kwargs or {}))


def make(o: argparse.Namespace, **changed: Any) -> Job:
    """A run without data."""
    v = {**vars(o), **changed}
    method = DINOConfig(
        v["global_size"],
        v["local_size"],
        v["num_local"],
        num_prototypes=v["prototypes"],
        freeze_last_layer=0,  # no contender leaves out any work
        drop_path=0.0,
    )
    config: TrainConfig[Any] = TrainConfig(
        method=method,
        backbone=v["backbone"],
        batch_size=v["batch"],
        epochs=10,
        device=v["device"],
        precision=v["precision"],
        threads=1,
        seed=v["seed"],
        compile=v["compile"],
        keep_less=v["keep_less"],
        grad_checkpointing=v["grad_checkpointing"],
    )
    device = find_device(v["device"])
    images = Images("nowhere", "folder", tuple(str(i) for i in range(max(4096, 2 * v["batch"]))), ())
    return build(resolve(config, len(images.names), 1, device), images, device)


def batch_of(job: Job) -> list[Tensor]:
    """Random views."""
    made = torch.Generator(job.device).manual_seed(0)
    size = job.config.batch_size
    return [torch.randn(size, 3, v.size, v.size, device=job.device, generator=made) for v in job.method.views()]


def contenders(job: Job, with_lightly: bool = True) -> dict[str, plain.Contender]:
    """By name; the last is what the others are compared with."""
    num_views, size = len(job.method.views()), job.config.batch_size
    dtype = torch.bfloat16 if job.config.precision == "bf16" else torch.float32
    z, told = (F.normalize(torch.randn(n, size, 256, device=job.device), dim=-1).to(dtype) for n in (num_views, 2))
    z.requires_grad_()
    peer = plain.lightly(job, z, told) if with_lightly else None
    reference = plain.reference(job, z, told)  # copies the weights before ours move
    return {"nolabel": plain.nolabel(job, z, told), **({"lightly": peer} if peer else {}), "reference": reference}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def row(title: str, runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time in turn and print; a ratio is the median over rounds of the last contender's time over this one's."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            taken = 1000 * seconds(run, device)
            if number:  # the first warms up
                times[name].append(taken)
    base = list(times.values())[-1]
    for name, own in times.items():
        ratios = sorted(b / a for a, b in zip(own, base, strict=True))
        spread = f"{statistics.median(own):.1f} ({min(own):.1f} to {max(own):.1f})"
        print(
            f"| {title} | {name} | {spread} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    print(end="", flush=True)
    return times


def peak(run: Callable[[], object], device: torch.device) -> float:
    """MB allocated at most beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    now = most = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most / 1e6


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(4))


def main_table(o: argparse.Namespace) -> None:
    job = make(o)
    batch, device, found = batch_of(job), job.device, contenders(job)
    first = {name: float(c.step(batch)) for name, c in found.items()}
    off = abs(first["nolabel"] / first["reference"] - 1)
    print(f"first loss: {first}; off by {off:.1e}", flush=True)
    assert off < (2e-2 if job.config.precision == "bf16" else 1e-3), "these do not compute the same"
    print("| row | contender | ms | times faster than the reference |\n|---|---|---|---|", flush=True)
    for part in ("loss", "clip", "optimizer", "teacher"):
        if o.only in part:
            row(part, {n: getattr(c, part) for n, c in found.items()}, o.rounds, device)
    runs = {n: (lambda c=c: c.step(batch)) for n, c in found.items()}
    if o.only in "step":
        if o.precision != "fp32":
            exact = contenders(make(o, precision="fp32"), with_lightly=False)["reference"]
            runs = {"reference, fp32": lambda: exact.step(batch), **runs}
        times = row("step", runs, o.rounds, device)["nolabel"]
        with FlopCounterMode(display=False) as counted:
            found["nolabel"].step(batch)
        dtype = torch.bfloat16 if job.config.precision == "bf16" else torch.float32
        flops, rate = counted.get_total_flops(), matmul_rate(device, dtype)
        share = statistics.median(times) / 1000 / (flops / rate)
        print(
            f"\nnolabel's step: {flops / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s of matmul: {share:.2f} x the floor"
        )
    if o.only in "memory":
        memory(o)


def memory(o: argparse.Namespace) -> None:
    """Peak of a step by contender, and what an image adds to it: from as many again."""
    sizes: dict[str, list[float]] = {}
    for factor in (1, 2):
        job = make(o, batch=factor * o.batch)
        batch = batch_of(job)
        for name, c in contenders(job, with_lightly=factor == 1).items():
            c.step(batch)
            with Operations() as seen:
                c.step(batch)
            sizes.setdefault(name, []).append(peak(lambda c=c, batch=batch: c.step(batch), job.device))
            if factor == 1:
                print(f"{name}: {sizes[name][0]:.0f} MB, {seen.number} operations, {seen.waits} waits a step")
    for name, (one, *twice) in sizes.items():
        if twice:
            print(f"{name}: {(twice[0] - one) / o.batch:.1f} MB per image", flush=True)


def ceilings(o: argparse.Namespace) -> None:
    """What the machine can do at most: products by precision, and copying."""
    device = find_device(o.device)
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matmul {dtype}: {matmul_rate(device, dtype) / 1e12:.3f} TFLOP/s")
    source = torch.ones(2**29 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(5))
    print(f"copy, read and written: {2 * source.nbytes / best / 1e9:.1f} GB/s")


def curves(o: argparse.Namespace) -> None:
    """The step over batch, crops, K and image size."""
    print("| row | contender | ms | times faster than the reference |\n|---|---|---|---|", flush=True)
    for name, values in {
        "batch": [max(1, o.batch // 2), o.batch, 2 * o.batch],
        "num_local": [0, 4, 8],
        "prototypes": [o.prototypes // 16, o.prototypes, 2 * o.prototypes],
        "global_size": [o.global_size // 2, o.global_size, o.global_size * 3 // 2],
    }.items():
        for value in values:
            job = make(o, **{name: value})
            batch, found = batch_of(job), contenders(job, with_lightly=False)
            runs = {n: (lambda c=c, batch=batch: c.step(batch)) for n, c in found.items()}
            row(f"{name} {value}", runs, o.rounds, job.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    sizes = {
        "batch": 4,
        "global-size": 224,
        "local-size": 96,
        "num-local": 8,
        "prototypes": 65536,
        "rounds": 5,
        "seed": 0,
    }
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compile", action="store_true", help="nolabel's networks block by block")
    parser.add_argument("--keep-less", action="store_true", help="nolabel makes cheap activations twice")
    parser.add_argument("--grad-checkpointing", action="store_true", help="nolabel makes all activations twice")
    parser.add_argument("--ceilings", action="store_true", help="of the machine instead")
    parser.add_argument("--curves", action="store_true", help="over batch, crops, K and image size instead")
    parser.add_argument("--only", default="", help="one of loss, clip, optimizer, teacher, step, memory")
    parser.add_argument("--tiny", action="store_true")
    o = parser.parse_args()
    if o.tiny:
        o.backbone, o.batch, o.global_size, o.local_size, o.prototypes = "vit_tiny_patch16_224", 2, 32, 16, 512
    torch.manual_seed(o.seed)
    print(vars(o), torch.__version__, torch.cuda.get_device_name() if o.device == "cuda" else "", flush=True)
    (ceilings if o.ceilings else curves if o.curves else main_table)(o)


if __name__ == "__main__":
    main()
