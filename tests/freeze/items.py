"""The items of the freeze: a name, and a function that gives the text to hash.

Each runs with a folder of its own as the working directory that holds `worlds.pictures` as `world`, and names every
path relative to it: no text holds the path of a machine.
"""

import itertools
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import worlds
from product import METHODS, NolabelError, command, evaluate, narrow_detectors, resolved, resume, train
from texts import event_text, folder_lines, run_text
from torch.optim.optimizer import register_optimizer_step_post_hook

Items = dict[str, Callable[[], str]]

WORLD = Path("world")
BACKBONES: dict[str, dict[str, Any]] = {
    "vit": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": ["patch_size=8", "embed_dim=32", "depth=2", "num_heads=2"],
    },
    "resnet": {
        "backbone": "resnet18",
        "backbone_args": ["layers=[1,1,1,1]", "channels=[8,16,24,32]", "output_stride=8"],
    },
}
# A new method: a line of small sizes, with a learning rate at which the loss moves. Its recipe has the method's name.
SMALL: dict[str, tuple[dict[str, Any], float]] = {
    "densecl": ({"size": 32, "queue_size": 16, "momentum": 0.9, "hidden_dim": 32, "projection_dim": 8}, 0.3),
    "dino": (
        {"global_size": 32, "local_size": 16, "num_local": 2, "num_prototypes": 64}
        | {"hidden_dim": 32, "bottleneck_dim": 16, "momentum": 0.9, "drop_path": 0.1},
        0.06,
    ),
    "msn": (
        {"random_size": 32, "focal_size": 16, "num_random": 1, "num_focal": 2, "mask_ratio": 0.5}
        | {"num_prototypes": 16, "hidden_dim": 32, "output_dim": 16, "momentum": 0.9, "drop_path": 0.1},
        0.06,
    ),
    "simclr": ({"size": 32, "projection_dim": 16}, 3.0),
}
COMMON: dict[str, Any] = {"batch_size": 8, "precision": "fp32", "device": "cpu", "threads": 1, "workers": 0}
PROTOCOLS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "knn": (worlds.classes, {"ks": [1, 5]}),
    "linear": (worlds.classes, {"epochs": 4, "augment": True}),
    "lowshot": (worlds.classes, {"shots": [1, 2], "fractions": []}),
    "finetune": (
        worlds.classes,
        {"epochs": 1, "train_batch_size": 6, "mixup": 0.8, "randaugment": 9.0, "drop_path": 0.1},
    ),
    "retrieval": (worlds.queries, {}),
    "copies": (worlds.photos, {}),
    "video": (worlds.clips, {"short_side": 40, "num_last_frames": 2, "radius": 4}),
    "attention": (worlds.masks, {"short_side": 32}),
    "segmentation": (worlds.masks, {"short_side": 32, "epochs": 2, "bank_size": 40, "k": 5}),
    "detection": (worlds.boxes, {"steps": 2, "train_batch_size": 2, "short_side": 64, "detector": "fpn"}),
    "detection-c4": (worlds.boxes, {"steps": 2, "train_batch_size": 2, "short_side": 64, "detector": "c4"}),
    "all": (worlds.classes, {"only": ["knn", "linear", "copies"]}),
}


def methods(processes: int) -> Items:
    """Twenty steps of every method, as one process or as one of two; checkpoint and metrics at the end."""
    if METHODS.keys() != SMALL.keys():
        raise KeyError(f"SMALL in {__file__} lacks or has too many of the methods {', '.join(METHODS)}")
    chosen = itertools.product(SMALL, BACKBONES, ("fp32", "bf16"))
    return {f"method/{m}/{net}/{p}/{processes}": partial(_method, m, net, p) for m, net, p in chosen}


def _method(method: str, net: str, precision: str) -> str:
    sizes, lr = SMALL[method]
    if method == "msn" and net == "resnet":  # which has no patches to drop
        sizes = sizes | {"mask_ratio": 0.0}
    more = {"steps": 20, "log_every": 1, "eval_every": 20, "checkpoint_every": 20, "view_engine": "torch"}
    settings = COMMON | BACKBONES[net] | more | {"precision": precision}
    out = Path(f"{method}-{net}-{precision}")
    train(method, WORLD / "train", out, method=sizes, optim={"lr": lr, "warmup_epochs": 1}, **settings)
    return run_text(out)


def files() -> Items:
    """Runs of eight steps: every way to make views, workers, sources; stopped in the middle; and the small commands."""
    placed = {"torch": ("torch", "cpu"), "numba": ("numba", "cpu"), "device": ("torch", "device")}
    items: Items = {}
    for (name, (engine, augment)), workers in itertools.product(placed.items(), (0, 2)):
        more = {"view_engine": engine, "augment": augment, "workers": workers}
        items[f"run/{name}/{workers}-workers"] = partial(_eight_steps, f"{name}-{workers}", **more)
    items["resume/dino"] = partial(_stopped, "dino-small", "vit", 4)
    items["resume/densecl"] = partial(_stopped, "densecl-small", "resnet", 3)  # between two log lines
    for kind in ("folder", "zip", "list", "shards"):
        items[f"source/{kind}"] = partial(_source, kind)
    for kind in ("attention", "pca", "matches"):
        items[f"show/{kind}"] = partial(_show, kind)
    return items | {"embed": _embed, "pack": _pack}


def _eight_steps(name: str, recipe: str = "dino-small", net: str = "vit", **more: Any) -> str:
    out = Path(name)
    _train_eight(out, recipe, net, **more)
    return run_text(out) + "\n" + event_text(out)


def _train_eight(out: Path, recipe: str, net: str, data: str = "world/train", **more: Any) -> None:
    """Eight steps, six per epoch, with k-NN, two log lines per checkpoint."""
    sizes = SMALL[recipe.partition("-")[0]][0]
    steps = {"steps": 8, "log_every": 2, "eval_every": 4, "checkpoint_every": 4, "labels": str(WORLD)}
    train(recipe, data, out, method=sizes, **(COMMON | BACKBONES[net] | steps | {"view_engine": "torch"} | more))


def _stopped(recipe: str, net: str, steps: int) -> str:
    """A run that SIGTERM stops after `steps` and that is resumed. AssertionError unless it ends as one in one go."""
    whole, halved = Path(f"{recipe}-whole"), Path(f"{recipe}-halved")
    _train_eight(whole, recipe, net)
    taken = itertools.count(1)
    hook = register_optimizer_step_post_hook(
        lambda *_: os.kill(os.getpid(), signal.SIGTERM) if next(taken) == steps else None
    )
    try:
        _train_eight(halved, recipe, net)
    except NolabelError as stopped:
        assert stopped.code == 143, stopped
    else:
        raise AssertionError("SIGTERM did not stop the run")
    finally:
        hook.remove()
    assert max((halved / "checkpoints").glob("step-*")).name == f"step-{steps:08d}"
    resume(halved)
    assert run_text(halved) == run_text(whole), f"{recipe}: a resumed run ends otherwise than one in one go"
    return run_text(halved) + "\n" + event_text(halved)


def _source(kind: str) -> str:
    """A run from a source, and what `nolabel check` says of it."""
    worlds.containers(WORLD)
    data = {"folder": "world/train", "zip": "world.zip", "list": "world.txt", "shards": "shards"}[kind]
    if kind == "shards":
        command("pack", "world/train", "--out", data)
    _train_eight(Path("run"), "simclr-small", "resnet", data, labels=None)
    return command("check", data, "--json") + run_text(Path("run"))


def _show(kind: str) -> str:
    worlds.weights(Path("weights"), *worlds.VIT)
    images = ["world/val/star/00001.png", "world/val/ring/00001.png"]
    said = command("show", kind, "weights", *images, "--out", "pictures", "--device", "cpu")
    return said + "\n".join(folder_lines(Path("pictures")))


def _embed() -> str:
    worlds.weights(Path("weights"), *worlds.VIT)
    return command("embed", "weights", "world", "--out", "out/f.npz", "--labelled", "--device", "cpu") + "\n".join(
        folder_lines(Path("out"))
    )


def _pack() -> str:
    return command("pack", "world", "--out", "shards") + "\n".join(folder_lines(Path("shards")))


def evaluations() -> Items:
    """The result of every protocol, and what lies beside it."""
    items: Items = {f"eval/{name}": partial(_evaluate, name) for name in PROTOCOLS}
    if missing := set(_names("protocols")) ^ {name.partition("-")[0] for name in PROTOCOLS}:
        raise KeyError(f"PROTOCOLS in {__file__} lacks or has too many: {', '.join(missing)}")
    return items


def _evaluate(name: str) -> str:
    write, settings = PROTOCOLS[name]
    write(Path("data"))
    worlds.weights(Path("weights"), *(worlds.VIT if name == "attention" else worlds.RESNET))
    out = Path("results") / f"{name}.json"
    with narrow_detectors():
        evaluate(name.partition("-")[0], "weights", "data", out, cache=False, seed=7, **settings)
    return "\n".join(folder_lines(out.parent))


def words() -> Items:
    """The settings of every recipe, and every help text and list."""
    recipes = _names("recipes")
    items: Items = {f"config/{name}": partial(resolved, name) for name in recipes}
    asked = [["resume", "run"], *(["train", name] for name in ["", *recipes])]
    asked += [["eval", name] for name in ("", *_names("protocols"))]
    asked += [["show", kind] for kind in ("", "attention", "pca", "matches")]
    asked += [[name] for name in ("", "embed", "pack", "check", "demo")]
    for words in ([word for word in line if word] for line in asked):
        items["help/" + "-".join(["nolabel", *words])] = partial(_help, *words)
    lists = ("recipes", "backbones", "protocols")
    return items | {f"list/{name}": partial(command, "list", name) for name in lists}


def _help(*words: str) -> str:
    if words[0:1] == ("resume",):
        _train_eight(Path("run"), "dino-small", "vit")
    return command(*words, "--help")


def _names(kind: str) -> list[str]:
    lines = command("list", kind).splitlines()
    return [line.split()[0] for line in lines if line]


GROUPS: dict[str, Callable[[], Items]] = {
    "one": partial(methods, 1),
    "two": partial(methods, 2),
    "files": files,
    "evaluations": evaluations,
    "words": words,
}
