"""Which networks of timm give Features, at which sizes of images: one or two networks of every family.

`python benchmarks/backbones.py > src/nolabel/networks/timm_networks.txt` writes the table that
`nolabel list backbones --all` prints; what does not hold goes to stderr. Names of networks measure these alone.
"""

import math
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch

from nolabel.errors import UsageError
from nolabel.networks.backbones import Backbone, backbone
from nolabel.networks.fitting import Form, build_without_values, first_words, fit, measure, own_size
from nolabel.weights.load import load_weights
from nolabel.weights.timm import save_weights

SIZES = (64, 32, 224)
"""Sides in pixels at which networks run with values."""
MOST_VALUES = 12_000_000
"""Networks of more parameters are measured by their shapes alone."""
ODD = (100, 40)
"""Sizes that only networks of any size take; a patch of 4 px divides both, one of 8 px the second."""
EVEN = (32, 64, 96, 112, 224)


def sizes_of(name: str) -> str:
    """Words for the sizes of images that a network takes; `no: ...` with the reason where it gives no Features."""
    fitted = fit(name, {}, None)
    if fitted.form is None:
        return f"no: {fitted.reason}"
    own = own_size(build_without_values(name, {}), {})

    def takes(size: int) -> bool:
        return isinstance(measure(name, fitted.options, size), Form)

    if all(map(takes, (101, 40))):
        return "any size"
    tried = sorted({*ODD, *EVEN, own})
    holds = [size for size in tried if takes(size)]
    step = math.gcd(*holds)
    if len(holds) > 1 and holds == [size for size in tried if size % step == 0]:
        return f"multiples of {step} px"
    if len(holds) > 1 and holds == [size for size in tried if size >= holds[0]]:
        return f"{holds[0]} px or more"
    if len(holds) > 1:
        return f"some sizes: {', '.join(map(str, holds))} px"
    if any(fit(name, {}, size).form for size in (own * 2, own // 2)):
        return f"one size for all images, by default {own} px"
    return f"{own} px only"


def _families() -> dict[str, list[str]]:
    """The names of each family (a module of timm), those with the fewest values first."""
    members: dict[str, list[str]] = {}
    for name in timm.list_models():
        members.setdefault(timm.model_entrypoint(name).__module__.rpartition(".")[2], []).append(name)
    return members


def two_per_family() -> Iterator[str]:
    """The smallest network of each class of a family, and the next smallest where there is one class."""
    for names in _families().values():
        built = {name: build_without_values(name, {}) for name in names}
        small = sorted(names, key=lambda name: sum(p.numel() for p in built[name].parameters()))
        classes: dict[type, str] = {}
        for name in small:
            classes.setdefault(type(built[name]), name)
        yield from (*classes.values(), *(small[1:2] if len(classes) == 1 else ()))


def num_values(name: str) -> int:
    """The number of parameters of a network."""
    return sum(p.numel() for p in build_without_values(name, {}).parameters())


def check(name: str) -> list[str]:
    """Faults in the Features of a network, with values, at each size that it takes; empty if there are none."""
    torch.manual_seed(0)
    own = own_size(build_without_values(name, {}), {})
    sizes = sorted({*SIZES, own} if own <= max(SIZES) else SIZES)
    try:
        net = backbone(name, drop_path=0.1)
    except UsageError as error:
        return [f"refused: {str(error).splitlines()[0]}"]
    problems = []
    for size in sizes:
        found = list(_check_size(net, size))
        if found and found[0].startswith("refused"):  # a network of one size
            try:
                net = backbone(name, image_size=size, drop_path=0.1)
                found = list(_check_size(net, size))
            except UsageError:
                found = []  # `sizes_of` has it
        problems += [f"{size} px: {problem}" for problem in found]
    return [*problems, *_check_file(net)]


def _check_size(net: Backbone, size: int) -> Iterator[str]:
    net.eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        try:
            out = net(x)
        except UsageError as error:
            yield f"refused: {str(error).splitlines()[0]}"
            return
        theirs = net.model(x)
        again = net(x.flip(0))
    rows, columns = out.grid
    if out.pooled.shape != (2, net.num_features) or out.patches.shape != (2, rows * columns, net.patch_features):
        yield f"pooled {tuple(out.pooled.shape)}, patches {tuple(out.patches.shape)}, grid {out.grid}"
    if not (out.pooled.isfinite().all() and out.patches.isfinite().all()):
        yield "values that are not finite"
    if not torch.allclose(out.pooled, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())):
        yield "the pooled vector is not what timm gives"
    if not torch.allclose(again.pooled.flip(0), out.pooled, rtol=1e-2, atol=1e-3 * float(theirs.abs().max())):
        yield "the features of an image depend on the others of its batch"
    yield from _check_order(net, x)
    yield from _check_gradient(net, x)


def _check_order(net: Backbone, x: torch.Tensor) -> Iterator[str]:
    """A change in a quarter of the image must change the features of that quarter most."""
    height, width = x.shape[-2:]
    changed = x.clone()
    changed[..., : height // 2, width // 2 :] += 1
    with torch.no_grad():
        before, after = net(x), net(changed)
    rows, columns = before.grid
    if rows < 4:
        return
    moved = (after.patches - before.patches).norm(dim=-1).mean(0).view(rows, columns)
    quarters = {
        (top, left): float(moved[top * rows // 2 :][: rows // 2, left * columns // 2 :][:, : columns // 2].mean())
        for top in (0, 1)
        for left in (0, 1)
    }
    if 1.2 * quarters[0, 1] < quarters[1, 0]:  # about equal where untrained attention mixes all locations
        yield "the locations are not row by row"


def _check_gradient(net: Backbone, x: torch.Tensor) -> Iterator[str]:
    net.train().requires_grad_(True)
    try:
        out = net(x.repeat(2, 1, 1, 1))
        (out.pooled.square().mean() + out.patches.square().mean()).backward()
    except Exception as error:
        yield f"training fails: {type(error).__name__}: {str(error)[:100]}"
    if not any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters()):
        yield "no gradient"
    net.zero_grad(set_to_none=True)
    net.eval()


def _check_file(net: Backbone) -> Iterator[str]:
    """The stored weights must open in timm and here, with the same features."""
    size = own_size(net.model, net.args)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_weights(net, Path(folder, "w"), size, (0.5,) * 3, (0.5,) * 3)
        theirs: Any = timm.create_model(f"local-dir:{folder}/w", pretrained=True, num_classes=0).eval()
        ours = net(x).pooled
        if not torch.allclose(theirs(x), ours, rtol=1e-4, atol=1e-5 * float(ours.abs().max())):
            yield "timm opens the stored weights with other features"
        if not torch.equal(load_weights(Path(folder, "w")).backbone(x).pooled, ours):
            yield "the stored weights have other features"


def survey(name: str) -> str:
    """The sizes of a network in words, or `no: ...` with what is wrong."""
    sizes = sizes_of(name)
    if sizes.startswith("no: ") or num_values(name) > MOST_VALUES:
        return sizes
    problems = check(name)
    return f"no: {'; '.join(problems)}" if problems else sizes


def _apart(name: str) -> str:
    """The survey in a process of its own: one network must not end those of all others."""
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        try:
            return pool.submit(survey, name).result()
        except BrokenProcessPool:
            return "no: training ends the process (an error within torch)"
        except Exception as error:  # networks raise nearly anything
            return f"no: {first_words(error)}"


def main(*names: str) -> None:
    torch.set_num_threads(1)
    print(f"# timm {timm.__version__}: family, network, sizes; written by benchmarks/backbones.py", flush=True)
    for name in names or two_per_family():
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        sizes = _apart(name)
        if sizes.startswith("no: "):
            print(f"| {family} | `{name}` | {sizes.removeprefix('no: ')} |", file=sys.stderr, flush=True)
        else:
            print(family, name, sizes, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
