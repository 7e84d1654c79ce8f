"""The features of all images of DATA in one file, for other tools: npz (numpy) or parquet (tables of any kind)."""

import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nolabel.console import note
from nolabel.data.images import Images, LabelledImages, scan, scan_labelled, scanned_in
from nolabel.data.missing import check_missing, describe_missing
from nolabel.data.names import printable
from nolabel.errors import StorageError, UsageError
from nolabel.evals.protocol import EvalConfig, cache_folder, check_common, describe_weights
from nolabel.evals.shared.cache import features
from nolabel.evals.shared.pieces import Layout, pieces_of
from nolabel.evals.shared.reading import report_splits
from nolabel.files import replacing
from nolabel.weights.load import Loaded

SUFFIXES = (".npz", ".parquet")


class Embedded(NamedTuple):
    """The file that was written, and its size."""

    path: Path
    num_images: int
    num_unreadable: int
    width: int


def embed_images(
    loaded: Loaded,
    data: str | Path,
    out: Path,
    layout: Layout,
    config: EvalConfig,
    before_norm: bool = False,
    labelled: bool = False,
) -> Embedded:
    """Write one row per image that can be read: its name and its features; with `labelled` its split and class, too.

    Raises UsageError for another suffix than .npz and .parquet, or a missing library; StorageError.
    """
    check_common(config)
    check_format(out)
    pieces = pieces_of(loaded.backbone, layout, before_norm)
    loaded = loaded._replace(limits=config.range or loaded.limits)
    with scanned_in(loaded.limits):
        splits = scan_labelled(data) if labelled else {"": _without_labels(_complete(data))}
    report_splits(splits)
    folder = cache_folder(loaded, config)
    columns: dict[str, list[Any]] = {"ids": [], "split": [], "label": []}
    parts = []
    for name, part in splits.items():
        table = features(loaded, part, pieces, config, folder).table(pieces)
        parts.append(table.features.numpy())
        columns["ids"] += [printable(i) if out.suffix == ".parquet" else i for i in table.ids]
        columns["split"] += [name] * len(table.ids)
        columns["label"] += table.labels.tolist()
    if not labelled:
        columns = {"ids": columns["ids"]}
    classes = next(iter(splits.values())).classes
    facts = describe_weights(loaded, config) | layout._asdict() | {"before_norm": before_norm}
    facts |= {"classes": classes} if labelled else {}
    rows = np.concatenate(parts)
    _write(out, rows, columns, facts)
    total = sum(len(part.labels) for part in splits.values())
    return Embedded(out, len(rows), total - len(rows), rows.shape[1])


def check_format(out: Path) -> None:
    """UsageError for another suffix than .npz and .parquet, and where the library for it is missing."""
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out} must end in {' or '.join(SUFFIXES)}: the suffix chooses the format.")
    if out.suffix == ".parquet":
        _pyarrow()


def is_embedding(path: Path) -> bool:
    """Whether a file holds features that nolabel has written; what cannot be read does not."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return b"nolabel" in (pq.read_metadata(path).metadata or {})
        with zipfile.ZipFile(path) as file:
            return {"features.npy", "ids.npy", "about.npy"} <= set(file.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):  # pyarrow's errors are ValueErrors
        return False


def _complete(data: str | Path) -> Images:
    """The images of DATA; lines on those that are missing. DataError where more than 5 % are."""
    images = scan(data)
    check_missing(images.names, images.skipped, data)
    for line in describe_missing(images.names, images.skipped):
        note(line)
    return images


def _without_labels(images: Images) -> LabelledImages:
    return LabelledImages(images, (0,) * len(images.names), ())


def _write(out: Path, rows: np.ndarray, columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
    """Replace `out` in one step."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as file:
            (_write_npz if out.suffix == ".npz" else _write_parquet)(file, rows, columns, facts)
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror}). Choose another --out.") from error


def _write_npz(file: BinaryIO, rows: np.ndarray, columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
    """Arrays that numpy reads without pickle: `features` (N, D) float32, `ids` (N,), `about` (JSON) and the others."""
    arrays: dict[str, Any] = {name: np.asarray(values) for name, values in columns.items()}
    if "classes" in facts:
        arrays["classes"] = np.asarray(facts["classes"])
    np.savez(file, allow_pickle=False, features=rows, about=np.asarray(json.dumps(facts)), **arrays)


def _write_parquet(file: BinaryIO, rows: np.ndarray, columns: dict[str, list[Any]], facts: dict[str, Any]) -> None:
    """One row per image: `ids`, `features` (D float32), perhaps `split` and `class`; facts as metadata."""
    pa = _pyarrow()
    import pyarrow.parquet as pq

    named = {"ids": pa.array(columns["ids"], pa.string())}
    if "label" in columns:
        named["split"] = pa.array(columns["split"], pa.string())
        named["class"] = pa.array([printable(facts["classes"][i]) for i in columns["label"]], pa.string())
    flat = pa.array(rows.reshape(-1), pa.float32())
    named["features"] = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    pq.write_table(pa.table(named).replace_schema_metadata({"nolabel": json.dumps(facts)}), file)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UsageError(
            "Writing .parquet needs pyarrow: pip install 'nolabel[parquet]'. An .npz needs nothing more."
        ) from None
    return pyarrow
