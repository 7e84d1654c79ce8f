"""What the dense part of DenseCL costs: whole optimizer steps with it over those of MoCo v2, in turn.

    python benchmarks/densecl_cost.py                 # ResNet-18, 64 px, on the CPU
    python benchmarks/densecl_cost.py --backbone resnet50 --size 224 --queue 65536 --device cuda --precision bf16

Random images already in memory, so that neither reading nor augmentation hides the difference. The paper says < 1 %
(ResNet-50, 224 px, 8 GPUs, data loading included). Medians; the spread is the interquartile range. On the CPU it is the
time of the process, which other work on the machine disturbs less than the clock on the wall.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from nolabel.config import TrainConfig, find_device, resolve
from nolabel.data.images import Images
from nolabel.methods.densecl import DenseCLConfig
from nolabel.optim.optimizers import OptimConfig
from nolabel.training.job import Job, build
from nolabel.training.step import training_step


def make(options: argparse.Namespace, dense_weight: float) -> Job:
    """A run of the method without data."""
    config: TrainConfig[Any] = TrainConfig(
        method=DenseCLConfig(size=options.size, queue_size=options.queue, dense_weight=dense_weight),
        optim=OptimConfig("sgd", lr=0.03, warmup_epochs=0, decay_all=True, clip_grad=0),
        backbone=options.backbone,
        batch_size=options.batch,
        epochs=1,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
    )
    device = find_device(options.device)
    images = Images("nowhere", "folder", tuple(str(i) for i in range(2 * options.queue)), ())
    return build(resolve(config, len(images.names), 1, device), images, device)


def seconds(job: Job, step: int) -> float:
    """Of one optimizer step."""
    generator = torch.Generator(job.device).manual_seed(step)
    shape = (job.config.batch_size, 3, job.config.method.size, job.config.method.size)
    views = [torch.randn(shape, generator=generator, device=job.device) for _ in range(2)]
    start = now(job.device)
    training_step(job, views, job.clock(step))
    return now(job.device) - start


def now(device: torch.device) -> float:
    """Seconds: of this process on the CPU; on the wall, after all that was launched, on a GPU."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Print both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--queue", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    jobs = {"MoCo v2": make(options, 0.0), "DenseCL": make(options, 0.5)}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for step in range(options.steps + 2):
        for name, job in jobs.items():
            taken = seconds(job, step)
            if step >= 2:  # the first steps also allocate
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        rate = options.batch / medians[name]
        span = f"{1e3 * low:.1f} to {1e3 * high:.1f}"
        print(f"{name}  {1e3 * medians[name]:8.1f} ms per step  ({span})  {rate:8.1f} img/s")
    pairs = [b / a for a, b in zip(times["MoCo v2"], times["DenseCL"], strict=True)]
    print(f"ratio of the medians {medians['DenseCL'] / medians['MoCo v2']:.3f}, median of the ratios", end=" ")
    print(f"{statistics.median(pairs):.3f}")


if __name__ == "__main__":
    main()
