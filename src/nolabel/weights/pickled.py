"""Tensors of a .pth or .bin file, read without running its code; errors describe what else such a file holds."""

import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nolabel.errors import DataError

MOST_NAMED = 8
"""Largest number of keys of a file that an error names."""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` has written from a state dict. DataError for anything else.

    The arguments of a run (argparse.Namespace) may be beside them: they are plain values, and are not used.
    """
    try:
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise nearly anything
        raise _cannot_open(path, error) from error
    if not isinstance(loaded, Mapping):
        raise DataError(
            f"{path} holds a {type(loaded).__name__}: expected the state dict of a network, names to tensors."
        )
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if not tensors:
        raise _nested(path, loaded)
    return tensors


def _cannot_open(path: Path, error: Exception) -> DataError:
    classes = sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error))))
    if not classes:
        first = _plain(str(error).strip().partition("\n")[0]) or type(error).__name__
        return DataError(f"{path} is damaged or no file of tensors ({first[:200]}).\nCopy it again.")
    keys = _keys_without_code(path)
    inside = f" It holds {_list(keys)}." if keys else ""
    key = next((k for k in ("teacher", "student", "state_dict", "model") if k in keys), "")
    part = f"[{key!r}]" if key else ""
    return DataError(
        f"{path} holds objects of {', '.join(classes)[:100]} beside tensors, which nolabel never opens.{inside}\n"
        "If you trust the file, save the network alone, and give that file to nolabel:\n"
        f"  torch.save(torch.load({path.name!r}, weights_only=False){part}, 'weights.pth')"
    )


def _nested(path: Path, loaded: Mapping[Any, Any]) -> DataError:
    parts = {
        str(k): sum(isinstance(x, Tensor) for x in v.values()) for k, v in loaded.items() if isinstance(v, Mapping)
    }
    networks = {k: n for k, n in parts.items() if n}
    content = [f"{k} ({networks[k]} tensors)" if k in networks else k for k in map(str, loaded)]
    if not networks:
        return DataError(f"{path} holds no tensors: found {_list(content)}. Expected the state dict of a network.")
    best = next((k for k in ("teacher", "state_dict", "model") if k in networks), next(iter(networks)))
    return DataError(
        f"{path} holds no network at its top: found {_list(content)}.\n"
        "Save the part that is the network, its names as timm has them, and give that file to nolabel:\n"
        f"  torch.save(torch.load({path.name!r}, weights_only=False)[{best!r}], 'weights.pth')"
    )


def _list(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(_plain(name)[:60] for name in names[:MOST_NAMED]) + more


def _plain(text: str) -> str:
    """`text` without the colours that torch puts into its errors."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class _Nothing:
    """A placeholder for every object of a pickle but its containers."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _Keys(pickle.Unpickler):
    """Reads only the containers of a pickle: no class of the file is looked up, so none of its code runs."""

    def find_class(self, module: str, name: str) -> Any:
        return dict if name == "OrderedDict" else _Nothing

    def persistent_load(self, _: object) -> object:
        return _Nothing()


def _keys_without_code(path: Path) -> list[str]:
    """The keys at the top of a file that is not opened; empty where they cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(name) as file:
                loaded = _Keys(file).load()
        return [str(key) for key in loaded] if isinstance(loaded, dict) else []
    except Exception:  # only words of an error depend on it
        return []
