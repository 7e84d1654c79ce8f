"""Whether a timm network can be used, at which sizes, and how wide its features are.

The answer comes from a forward pass on torch's meta device. It has shapes without values, and takes hardly any time and
memory.
"""

import difflib
from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from nolabel.catalog import measured_backbones
from nolabel.errors import UsageError
from nolabel.networks.features import read_features

FEWEST = 4
"""Least number of locations in an image of the network's own size. With fewer, the vectors are class tokens, no map."""


class Form(NamedTuple):
    """Widths and locations of the Features of a network."""

    pooled: int
    """Width of the pooled vector."""
    patches: int
    """Width of the vector of a location."""
    rows: int
    columns: int


class Fit(NamedTuple):
    """Arguments with which a network takes the images, with the form of its features or the reason why it has none."""

    options: dict[str, Any]
    form: Form | None
    reason: str = ""


_FORMS: dict[tuple[str, int], Form | str] = {}
"""Results of `measure` by network and size, because a method asks for the same network and size several times."""


_BUILT: dict[str, Any] = {}
"""The networks that were measured last, at most two."""


def measure(name: str, options: Mapping[str, Any], size: int) -> Form | str:
    """The form of the features of `size` x `size` images, or why the network has none, in a few words."""
    key = repr((name, sorted(options.items(), key=lambda item: item[0])))
    if (key, size) not in _FORMS:
        _FORMS[key, size] = _measure(key, name, options, size)
    return _FORMS[key, size]


def _measure(key: str, name: str, options: Mapping[str, Any], size: int) -> Form | str:
    try:
        if key not in _BUILT:
            for old in list(_BUILT)[:-1]:
                del _BUILT[old]
            _BUILT[key] = _ready_to_run(name, options)
        model = _BUILT[key]
        device = next(model.parameters()).device
        with torch.no_grad():
            features = read_features(model, torch.zeros(2, 3, size, size, device=device))
    except Exception as error:  # networks raise nearly anything
        return first_words(error)
    rows, columns = features.grid
    if features.patches.shape[:2] != (2, rows * columns) or len(features.pooled) != 2:
        return f"its {tuple(features.patches.shape)} features are not one per location"
    return Form(features.pooled.shape[1], features.patches.shape[2], rows, columns)


def _ready_to_run(name: str, options: Mapping[str, Any]) -> Any:
    model = build_without_values(name, options)
    if any(isinstance(m, nn.RNNBase) for m in model.modules()):  # they take minutes on the meta device
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    return model.eval()


def build_without_values(name: str, options: Mapping[str, Any]) -> Any:
    """The timm network on the meta device; the random state stays."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(name, pretrained=False, num_classes=0, **options)


def fit(name: str, options: Mapping[str, Any], image_size: int | None) -> Fit:
    """Arguments with which the network takes images of `image_size` pixels (by default its own size).

    Where the class has it, `dynamic_img_size` is turned on, so that other sizes work as well. `img_size` is set only
    for networks that don't take the size otherwise.
    """
    model = build_without_values(name, options)
    if len({id(t) for t in model.state_dict(keep_vars=True).values()}) < len(model.state_dict()):
        return Fit(dict(options), None, "it has tensors under several names each, which a weight file cannot hold")
    known = _parameters(type(model))
    options = dict(options)
    if "dynamic_img_size" in known:
        options = {"dynamic_img_size": True, **options}
    whole = measure(name, {}, own_size(model, {}))
    if isinstance(whole, Form) and whole.rows * whole.columns < FEWEST:
        return Fit(options, None, f"it gives {whole.rows * whole.columns} vectors per image and no map")
    size = image_size or own_size(model, options)
    form = measure(name, options, size)
    if isinstance(form, Form):
        return Fit(options, form)
    if "img_size" not in options:
        resized = {**options, "img_size": size}
        other = measure(name, resized, size)
        if isinstance(other, Form):
            return Fit(resized, other)
    return Fit(options, None, form)


def fitted(name: str, options: Mapping[str, Any], image_size: int | None) -> tuple[dict[str, Any], Form]:
    """Arguments of a network and the form of its features. UsageError where it has none."""
    answer = fit(name, options, image_size)
    if answer.form is None:
        at = f" of {image_size}x{image_size} px" if image_size else ""
        raise UsageError(
            f"nolabel cannot use {name}: it gives no pooled vector and map of features for images{at}\n"
            f"({answer.reason}).\n{suggest(name)} `nolabel list backbones --all` lists more."
        )
    return answer.options, answer.form


def wrong_size(name: str, own: int, size: tuple[int, int], reason: str) -> UsageError:
    """The error for images of `size` (rows, columns), which a network made for `own` pixels does not take."""
    return UsageError(
        f"{name} does not take images of {size[0]}x{size[1]} px ({reason}).\n"
        f"Use {own} px throughout, or a network that takes any size: vit_small_patch16_224, resnet50, convnext_tiny.\n"
        "`nolabel list backbones --all` shows the sizes that each takes."
    )


def stochastic_depth(name: str, options: Mapping[str, Any], rate: float) -> dict[str, float]:
    """The rate of drop path as an argument, empty where the network has none.

    A rate of 0 is passed on as well, because some networks have another by default.
    """
    if not rate and "drop_path_rate" in options:
        return {}
    try:
        build_without_values(name, {**options, "drop_path_rate": rate})
    except TypeError as error:
        return {} if "drop_path_rate" in str(error) else {"drop_path_rate": rate}
    return {"drop_path_rate": rate}


def own_size(model: Any, options: Mapping[str, Any]) -> int:
    """The side in pixels of the images that a network is made for."""
    given = options.get("img_size")
    if isinstance(given, (tuple, list)):
        given = given[-1] if given else None
    size = given or (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
    return int(size)


def suggest(name: str) -> str:
    """`Use one that does, such as a, b, c.`: of the same family if there is one, else with a similar name."""
    table = {n: row for n, row in measured_backbones().items() if timm.is_model(n)}
    family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    relatives = [n for n, row in table.items() if row.family == family]
    similar = relatives or difflib.get_close_matches(name, table, n=3, cutoff=0.0)
    return f"Use one that does, such as {', '.join(similar[:3])}."


def first_words(error: BaseException) -> str:
    """The type of an error and its first line, at most 200 letters."""
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _parameters(cls: type) -> set[str]:
    """Names of the arguments of a class, with those that it passes on to its bases."""
    names: set[str] = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("timm"):
            break
        own = signature(base.__init__).parameters.values()  # type: ignore[misc]
        names |= {p.name for p in own}
        if not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in own):
            break
    return names
