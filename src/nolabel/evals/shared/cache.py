"""Features on disk, so that one extraction serves every protocol. Removing the folder costs nothing but time.

A file holds one piece of one set of images. Its name is a hash of all that decides the numbers: the weights, the images
with their times of change, the preprocessing, precision, device, batch size and threads, the versions of libraries.
It holds a SHA-256 of its tensors: a file that was damaged, or comes from elsewhere, is not used.
"""

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from nolabel.console import note
from nolabel.data.images import Images, LabelledImages
from nolabel.data.names import name_bytes
from nolabel.evals.protocol import EvalConfig
from nolabel.evals.shared.features import FeatureTable, PieceTable, Pixels, decoded, embed_pieces, evaluation_crop
from nolabel.evals.shared.pieces import POOLED, Piece
from nolabel.evals.shared.results import write_tensors
from nolabel.progress import duration
from nolabel.version import __version__
from nolabel.weights.load import Loaded

VERSION = 1  # raised when the numbers in a file change their meaning
LIBRARIES = ("torch", "torchvision", "timm", "Pillow", "simplejpeg")  # that decode, resize and compute
MAX_BYTES = 10 * 2**30
_NAME = re.compile(r"[0-9a-f]{24}-[a-z]+[0-9]*\.safetensors")  # of the files here; others in the folder stay


def pooled(loaded: Loaded, labelled: LabelledImages, config: EvalConfig, folder: Path | None) -> FeatureTable:
    """The pooled features of every image that can be read, from the cache where they are there."""
    return features(loaded, labelled, (POOLED,), config, folder).table((POOLED,))


def features(
    loaded: Loaded, labelled: LabelledImages, pieces: Collection[Piece], config: EvalConfig, folder: Path | None
) -> PieceTable:
    """The pieces of every image that can be read, in the order of `labelled`; what is not in `folder` is added to it.

    Raises DataError where no image can be read, NumericError where a feature is not finite.
    """
    paths = {} if folder is None else _paths(folder, loaded, labelled.images, pieces, config)
    kept = {piece: tensors for piece, path in paths.items() if (tensors := _load(path, len(labelled.labels)))}
    if len({tuple(tensors["rows"].tolist()) for tensors in kept.values()}) > 1:
        kept = {}  # some file could be read one time and not the other
    missing = [piece for piece in pieces if piece not in kept]
    if not missing:
        rows = next(iter(kept.values()))["rows"]
        ids = tuple(labelled.images.names[i] for i in rows.tolist())
        labels = torch.tensor(labelled.labels)[rows]
        return PieceTable({piece: kept[piece]["features"] for piece in pieces}, labels, ids)
    table = _extract(loaded, labelled, pieces, config)
    position = {name: i for i, name in enumerate(labelled.images.names)}
    rows = torch.tensor([position[name] for name in table.ids])
    _save({paths[piece]: {"features": table.pieces[piece], "rows": rows} for piece in missing if piece in paths})
    return table


def described(
    folder: Path | None, images: Images, kind: str, facts: Mapping[str, Any], make: Callable[[], FeatureTable]
) -> FeatureTable:
    """The table that `make` computes of `images`, its labels indices of these; from `folder` if it is kept there.

    `facts` name all that decides the numbers beside the images and the libraries.
    """
    path = None if folder is None else folder / f"{_key(images, facts)}-{kind}.safetensors"
    if path is not None and (kept := _load(path, len(images.names))):
        names = tuple(images.names[i] for i in kept["rows"].tolist())
        return FeatureTable(kept["features"], kept["rows"], names)
    table = make()
    if path is not None:
        _save({path: {"features": table.features, "rows": table.labels}})
    return table


def network_facts(loaded: Loaded, config: EvalConfig) -> dict[str, Any]:
    """Facts that decide the features of a prepared image."""
    return {
        "weights": [_digest(loaded.backbone), loaded.backbone.name, loaded.backbone.args, loaded.backbone.positions],
        "normalisation": [loaded.mean, loaded.std],
        # the last bits depend on how the work is split, too
        "numbers": [config.precision, torch.device(config.device).type, config.batch_size, torch.get_num_threads()],
    }


def _extract(loaded: Loaded, labelled: LabelledImages, pieces: Collection[Piece], config: EvalConfig) -> PieceTable:
    size = config.image_size or loaded.image_size
    crop = partial(evaluation_crop, size=size, interpolation=loaded.interpolation)
    batches = with_progress(decoded(labelled, crop, config.batch_size, config.workers), len(labelled.labels))
    return embed_pieces(loaded.backbone, batches, pieces, loaded.mean, loaded.std, config.device, config.precision)


def with_progress(batches: Iterable[Pixels], total: int, interval: float = 10.0) -> Iterator[Pixels]:
    """The same batches, with a line on stderr now and then."""
    start = last = time.monotonic()
    num_seen = 0
    for batch in batches:
        yield batch
        num_seen += len(batch.ids)
        now = time.monotonic()
        if now - last > interval:
            last = now
            left = duration((now - start) / num_seen * (total - num_seen))
            note(f"features of {num_seen}/{total} images | {left} left")


def _paths(
    folder: Path, loaded: Loaded, images: Images, pieces: Collection[Piece], config: EvalConfig
) -> dict[Piece, Path]:
    crop = [config.image_size or loaded.image_size, loaded.interpolation]
    key = _key(images, network_facts(loaded, config) | {"preprocessing": crop})
    return {piece: folder / f"{key}-{piece.kind}{piece.back}.safetensors" for piece in pieces}


def _key(images: Images, facts: Mapping[str, Any]) -> str:
    libraries = [__version__, *(version(name) for name in LIBRARIES)]
    every = {**facts, "version": VERSION, "libraries": libraries, "images": stamp(images)}
    every |= {} if images.limits is None else {"range": images.limits}
    return hashlib.sha256(json.dumps(every, sort_keys=True).encode()).hexdigest()[:24]


def _digest(net: nn.Module) -> str:
    """SHA-256 of the tensors in memory: `Loaded.fingerprint` is that of a file, and the network may differ from it."""
    return _sha256(net.state_dict())


def stamp(images: Images) -> str:
    """SHA-256 over names and what changes with the content: checksums in an archive, else sizes and times of change."""
    digest = hashlib.sha256()
    for name, facts in zip(images.names, images.source.facts(images.root, images.names), strict=True):
        digest.update(name_bytes(name) + b"\0%a\0" % (facts,))
    return digest.hexdigest()


def _load(path: Path, num_images: int) -> dict[str, torch.Tensor] | None:
    """The tensors that `_save` has written; None where the file is missing, damaged, or not of `num_images` images."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # a pipe would wait for ever
            return None
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            expected = (file.metadata() or {}).get("sha256")
        if expected != _sha256(tensors) or not _fits(tensors, num_images):
            return None
        os.utime(path)  # read last: removed last
    except (OSError, SafetensorError):
        return None
    return tensors


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fits(tensors: Mapping[str, torch.Tensor], num_images: int) -> bool:
    """Whether there is a row of features for each of some of the images."""
    if tensors.keys() != {"features", "rows"}:
        return False
    features, rows = tensors["features"], tensors["rows"]
    if rows.dim() != 1 or rows.dtype != torch.int64 or len(rows) == 0 or features.shape[:1] != rows.shape:
        return False
    return int(rows.min()) >= 0 and int(rows.max()) < num_images


def _save(entries: dict[Path, dict[str, torch.Tensor]]) -> None:
    """Write what fits; a full disk or a folder that can't be written only costs the next run its time."""
    for path, tensors in entries.items():
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > MAX_BYTES:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_room(path.parent, size)
            write_tensors(path, tensors, {"sha256": _sha256(tensors)})
        except OSError as error:
            note(f"features are not kept in {path.parent}: {error.strerror}")
            return


def _make_room(folder: Path, size: int) -> None:
    """Remove what was used longest ago until `size` more bytes stay within MAX_BYTES; other files are never removed."""
    files = sorted(
        ((f.stat(), f) for f in folder.iterdir() if _NAME.fullmatch(f.name)), key=lambda pair: pair[0].st_mtime_ns
    )
    total = size + sum(facts.st_size for facts, _ in files)
    for facts, file in files:
        if total <= MAX_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= facts.st_size
