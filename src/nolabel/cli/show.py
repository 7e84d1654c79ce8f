"""`nolabel show`: pictures of what a network sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image
from tyro.conf import Positional

from nolabel import console
from nolabel.config import find_device
from nolabel.data.bad_files import BadImage
from nolabel.data.decode import decode
from nolabel.data.images import read, scan
from nolabel.data.levels import Range, check_range
from nolabel.data.names import printable
from nolabel.data.selection import SUFFIXES
from nolabel.errors import DataError, UsageError
from nolabel.files import replacing
from nolabel.marks import made_by_nolabel, make_picture_folder
from nolabel.plots import attention_clip, attention_sheet, clip_frames, pca_sheet, prepare, show_matches
from nolabel.weights.load import MAX_SIDE, load_weights

USAGE = (
    "nolabel show attention|pca|matches WEIGHTS IMAGE... --out DIR [options]\n\n"
    "Every option: nolabel show attention --help"
)


@dataclass(frozen=True)
class ShowOptions:
    """Draw what a network sees, as PNG files."""

    weights: Annotated[str, Positional, tyro.conf.arg(metavar="WEIGHTS")]
    """Weights, as in `nolabel eval`."""
    images: Annotated[tuple[Path, ...], Positional, tyro.conf.arg(metavar="IMAGE ...")]
    """Image files, or folders of them."""
    out: Path
    """Folder for the pictures."""
    size: int | None = None
    """Shorter side of the picture in pixels; by default 480 at 224 px, and in that proportion."""
    keep: float = 0.6
    """Share of the attention that the masks hold."""
    limit: int = 32
    """Largest number of images taken from a folder."""
    clip: bool = False
    """Write one animation of attention: the images are frames in the order of their names, or one GIF or WebP."""
    range: tuple[float, float] | None = None
    """Values that become black and white in files of more than 8 bits; by default those of the weights."""
    device: str = "auto"
    backbone: str | None = None
    """timm name of a bare weight file."""
    allow_pth: bool = False
    """Read a .pth file from a source you trust; only its tensors."""


def show(args: list[str]) -> None:
    """Run the command with the arguments after its name."""
    kind = args[0]
    if kind in ("-h", "--help"):
        console.result(USAGE)
        return
    options = tyro.cli(ShowOptions, prog=f"nolabel show {kind}", args=args[1:])
    if options.size is not None and not 1 <= options.size <= MAX_SIDE:
        raise UsageError(f"--size {options.size} is no side of a picture: use 1 to {MAX_SIDE} pixels.")
    if not 0 < options.keep <= 1:
        raise UsageError(f"--keep {options.keep:g} is no share of the attention: above 0 and at most 1.")
    loaded = load_weights(options.weights, options.backbone, options.allow_pth)
    net = loaded.backbone.to(find_device(options.device))
    size = options.size or round(loaded.image_size * 480 / 224)
    check_range(options.range)
    opened = _open(options, options.range or loaded.limits)
    pictures = [(name, prepare(image, size, net.patch_size, loaded.mean, loaded.std)) for name, image in opened]
    targets = _targets(kind, options, [name for name, _ in opened])
    _make_folder(options, targets)
    if kind == "matches":
        _keep(show_matches(net, opened, size, loaded.mean, loaded.std), targets[0])
    elif kind == "pca":
        sheet = pca_sheet(net, [x for _, x in pictures], loaded.mean, loaded.std, [n for n, _ in pictures])
        _keep(sheet, targets[0])
    elif options.clip:
        attention_clip(targets[0], net, (x for _, x in pictures), loaded.mean, loaded.std)
        console.result(printable(str(targets[0])))
    else:
        for path, (name, x) in zip(targets, pictures, strict=True):
            _keep(attention_sheet(net, x, loaded.mean, loaded.std, name, options.keep), path)


def _keep(picture: Image.Image, path: Path) -> None:
    """Write a picture, and its path to stdout."""
    with replacing(path) as file:
        picture.save(file, "PNG")
    console.result(printable(str(path)))


def _targets(kind: str, options: ShowOptions, names: Sequence[str]) -> list[Path]:
    """The files to draw: one for each image, or one for all."""
    files = [f"attention-{name}.png" for name in _distinct(names)]
    if kind == "matches":
        files = [f"matches-{'-'.join(names[:2])}.png"]
    elif kind == "pca":
        files = ["pca.png"]
    elif options.clip:
        files = ["attention.webp"]
    return [options.out / file for file in files]


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind one that is taken: `a/b.jpg` and `a-b.jpg` are both `a-b`."""
    distinct: list[str] = []
    taken: set[str] = set()
    for name in names:
        new = next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(names) + 2))) if n.casefold() not in taken)
        taken.add(new.casefold())  # some file systems ignore case
        distinct.append(new)
    return distinct


def _make_folder(options: ShowOptions, targets: Sequence[Path]) -> None:
    """Make the folder of the pictures and mark it: below DATA it is left out, so that no picture becomes data.

    UsageError where the images are in it, or where nolabel has not drawn a file in it.
    """
    out = options.out
    if out.is_dir() and any(path.is_dir() and path.samefile(out) for path in options.images):
        raise UsageError(f"--out {out} is the folder of the images: choose another --out, or they would be mixed.")
    there = [path for path in targets if path.exists()]
    if there and not made_by_nolabel(out):
        raise UsageError(f"{there[0]} exists, and nolabel show has not made its folder: choose another --out.")
    make_picture_folder(out)


def _open(options: ShowOptions, limits: Range | None) -> list[tuple[str, Any]]:
    """Names and pixels of the images; those that cannot be read are named on stderr."""
    opened = clip_frames(options.images, options.limit) if options.clip else []
    for path in options.images if not opened else ():
        if not path.exists():
            raise DataError(f"{printable(str(path))} does not exist. Expected image files or folders of them.")
        images = scan(path) if path.is_dir() or path.suffix.lower() not in SUFFIXES else None
        for index in range(min(len(images.names), options.limit) if images else 1):
            name = images.names[index] if images else path.name
            try:
                pixels = decode(read(images, index) if images else path.read_bytes(), limits=limits)
            except (BadImage, OSError) as error:
                console.note(f"skipped {printable(name)}: {printable(str(error))}")
                continue
            opened.append((Path(name).stem if not images else name.rsplit(".", 1)[0].replace("/", "-"), pixels))
    if not opened:
        raise DataError("None of the images could be read. Expected image files or folders of them.")
    return opened
