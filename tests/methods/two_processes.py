"""Programs that test_two_processes.py runs both as one process and, by `torchrun`'s variables, as one of two.

As a script it writes what it finds to the file that is its argument.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sizes import SMALL
from tiny import SGD, changed, everything, job, step, views
from torch import Tensor, nn

from nolabel import distributed
from nolabel.distributed import group
from nolabel.distributed.batchnorm import SyncBatchNorm
from nolabel.distributed.group import all_gather, all_mean, all_sum, any_process, process_group
from nolabel.distributed.shuffle import shuffle, unshuffle
from nolabel.methods import densecl as method
from nolabel.optim.optimizers import all_finite
from nolabel.training.job import Job
from nolabel.training.step import training_step

STEPS = 3
Found = dict[str, Tensor]


def part(x: Tensor) -> Tensor:
    """The share of this process in rows of all."""
    return x.chunk(distributed.world_size())[distributed.rank()]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reductions() -> Found:
    """Values and gradients. Each process has its own loss; the gradient is that of the sum of all of them."""
    x = part(random(4, 3)).requires_grad_()
    weight = part(random(4, 3, seed=1))
    row = part(random(2, 3, seed=2))[0].requires_grad_() if distributed.active() else random(2, 3, seed=2)
    found = {"gathered": all_gather(x), "summed": all_sum(row) if distributed.active() else row.sum(0)}
    found["mean"] = all_mean(row) if distributed.active() else row.mean(0)
    # A loss that couples the rows: every process compares its own rows with those of all.
    (all_gather(x) @ x.T * (all_gather(weight) @ weight.T)).square().sum().backward()
    found["gradient of gathered"] = all_gather(x.grad)
    y = part(random(4, 3)).requires_grad_()
    total = all_sum(y.sum(0))
    (total * part(random(4, 3, seed=3)).sum(0)).sum().backward()
    found["gradient of summed"] = all_gather(y.grad)
    return {k: v.detach() for k, v in found.items()}


def flags() -> Found:
    """Only the last process has something to say, and every process hears it."""
    last = distributed.rank() == distributed.world_size() - 1
    said = [
        any_process(last, torch.device("cpu")),
        any_process(False, torch.device("cpu")),
        bool(all_finite(torch.tensor(torch.nan if last else 1.0))),
        bool(all_finite(torch.tensor(1.0))),
    ]
    return {"said": torch.tensor(said)}


def batchnorm(make: Callable[[], nn.Module], *shape: int) -> Found:
    """Two passes forward and backward over the joined batch, with a mean far from zero."""
    torch.manual_seed(0)
    norm = make()
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(torch.rand_like(p))
    layer = SyncBatchNorm(norm) if distributed.active() else norm  # type: ignore[arg-type]
    found: Found = {}
    for number in range(2):
        x = part(random(*shape, seed=number) * 3 + 100).requires_grad_()
        out = layer(x)
        (out * part(random(*shape, seed=9))).sum().backward()
        found |= {f"output {number}": all_gather(out.detach()), f"gradient {number}": all_gather(x.grad)}
    found |= {f"gradient of {n}": all_sum(p.grad.clone()) for n, p in layer.named_parameters()}
    found |= {f"state {n}": v.clone() for n, v in layer.state_dict().items()}
    layer.eval()
    found["evaluated"] = all_gather(layer(part(random(*shape, seed=3))).detach())
    return found


def training(make: Callable[[], Job]) -> Found:
    """The losses of some steps, averaged over processes, and all that has moved."""
    j = make()
    found = {}
    for number in range(STEPS):
        loss = torch.tensor(step(j, number)["loss"])
        found[f"loss {number}"] = all_mean(loss)
    return found | everything(j)


def frozen() -> Found:
    """The last layer stands still for the first epoch, four steps, its gradients thrown away; then it moves."""
    j = job(dataclasses.replace(SMALL["dino"], freeze_last_layer=1, teacher_temp=0.5))  # type: ignore[call-arg]
    for number in (0, 1, 4, 5):
        step(j, number)
    return everything(j)


def gradients() -> Found:
    """The number of gradients of a step, and of places in memory where they lie."""
    j = job(SMALL["dino"])
    step(j, 5)
    found = [p.grad for p in j.method.parameters() if p.grad is not None]
    places = {g.untyped_storage().data_ptr() for g in found}
    return {"places": torch.tensor(len(places)), "gradients": torch.tensor(len(found))}


def dino(backbone: str, **settings: int) -> Job:
    """A warm teacher: with sharp targets the center would hardly matter to the loss."""
    config = dataclasses.replace(SMALL["dino"], freeze_last_layer=0, teacher_temp=0.5)  # type: ignore[call-arg]
    return job(config, backbone, **settings)


def simclr() -> Job:
    """Slower than the others: at their rate these steps magnify rounding a hundred times."""
    return job(SMALL["simclr"], "resnet", optim=dataclasses.replace(SGD, lr=0.32))


def msn(**settings: Any) -> Job:
    """Me-max at a weight at which its gradient shows in every parameter."""
    config = dataclasses.replace(SMALL["msn"], memax_weight=2.0, **settings)
    return job(config, "vit", optim=dataclasses.replace(SGD, lr=0.16))


def densecl(backbone: str = "resnet", **settings: Any) -> Job:
    return job(dataclasses.replace(SMALL["densecl"], **settings), backbone, optim=dataclasses.replace(SGD, lr=0.32))


def shuffled() -> Found:
    """Rows sent to other processes and back, in the order of one process."""
    x = part(random(8, 3))
    away = shuffle(x, step=3)
    return {"away": all_gather(away), "back": all_gather(unshuffle(away, step=3)), "sent": random(8, 3)}


def bad_on_the_last(make: Callable[[], Job]) -> Found:
    """A good step, then one with a bad pixel in the last process alone: what every process says, and what has moved."""
    j = make()
    step(j, 0)
    before, batch = everything(j), views(j, 1)
    if distributed.rank() == distributed.world_size() - 1:
        batch[0][0, 0, 3, 3] = torch.nan
    said = training_step(j, batch, j.clock(1))
    return {"ok": torch.as_tensor(said["ok"]), "moved": torch.tensor(len(changed(before, everything(j))))}


def densecl_shuffled_back_wrongly() -> Found:
    """The planted bug: keys stay where they were normalised."""
    kept, method.unshuffle = method.unshuffle, lambda x, step: x
    try:
        found = training(lambda: densecl("vit", shuffle_bn=True))
    finally:
        method.unshuffle = kept
    return found


def cut() -> Found:
    """The planted bug: the gradient of me-max stops at the border of the process."""
    kept = group._AllSum.backward
    group._AllSum.backward = staticmethod(lambda ctx, grad: grad)  # type: ignore[method-assign]
    try:
        found = training(msn)
    finally:
        group._AllSum.backward = kept  # type: ignore[method-assign]
    return found


def unreduced() -> Found:
    """The planted bug: each process keeps a center of its own."""
    kept, distributed.all_mean = distributed.all_mean, lambda x: x
    try:
        found = training(lambda: dino("vit"))
    finally:
        distributed.all_mean = kept
    return found


RUNS: dict[str, Callable[[], Found]] = {
    "reductions": reductions,
    "flags": flags,
    "batchnorm 1d": lambda: batchnorm(lambda: nn.BatchNorm1d(5), 6, 5),
    "batchnorm 2d": lambda: batchnorm(lambda: nn.BatchNorm2d(5), 6, 5, 3, 2),
    "batchnorm without affine": lambda: batchnorm(lambda: nn.BatchNorm1d(5, affine=False), 6, 5),
    "dino vit": lambda: training(lambda: dino("vit")),
    "dino vit in micro-batches": lambda: training(lambda: dino("vit", micro_batch=2)),
    "dino vit, keeping less": lambda: training(lambda: dino("vit", keep_less=True)),
    "dino vit, last layer frozen first": frozen,
    "places of gradients": gradients,
    "dino resnet": lambda: training(lambda: dino("resnet")),
    "shuffled rows": shuffled,
    "densecl vit": lambda: training(lambda: densecl("vit")),
    "densecl resnet": lambda: training(densecl),
    "densecl vit, shuffled": lambda: training(lambda: densecl("vit", shuffle_bn=True)),
    "densecl resnet, shuffled": lambda: training(lambda: densecl(shuffle_bn=True)),
    "densecl vit, shuffled back wrongly": densecl_shuffled_back_wrongly,
    "msn vit": lambda: training(msn),
    "msn vit without sinkhorn": lambda: training(lambda: msn(sinkhorn_rounds=0)),
    "msn vit with a mask per image": lambda: training(lambda: msn(mask_per_sample=True)),
    "simclr resnet": lambda: training(simclr),
    "bad on the last: dino": lambda: bad_on_the_last(lambda: dino("vit")),
    "bad on the last: msn": lambda: bad_on_the_last(msn),
    "bad on the last: densecl": lambda: bad_on_the_last(densecl),
    "bad on the last: simclr": lambda: bad_on_the_last(simclr),
    "center not reduced": unreduced,
    "gradient of me-max cut": cut,
}


def main(out: Path) -> None:
    with process_group(torch.device("cpu")):
        found = {name: run() for name, run in RUNS.items()}
        torch.save(found, out / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert int(os.environ["WORLD_SIZE"]) == 2
    main(Path(sys.argv[1]))
