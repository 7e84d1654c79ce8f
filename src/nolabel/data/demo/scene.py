"""One scene of the demo world: outlines, textures, light, and how they become pixels.

Coordinates: x right, y down, both from -1 to 1 over the picture. Angles in degrees. Arrays see only correctly rounded
float32 operations (no sum, no matrix product, no sine), so a scene has the same pixels on every machine.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

FRAME_RATE = 24  # frames of a clip in a second of motion


CLUTTER = ("bar", "triangle", "square", "disc")


# How much varies, so that raw pixels give the class away in at most 35 % of the cases (20-NN) and a small network
# learns it within minutes; more of anything makes both harder.
RADIUS = (0.5, 0.8)


TURN = 20.0


BEND = (0.09, 0.12, 0.09, 0.09)


WALL_TEXTURE, OBJECT_TEXTURE, CLUTTER_COLOR = 0.08, 0.1, 0.25


MIN_CONTRAST = 0.35


GRAIN = 0.05


HALO_P, OCCLUDER_P = 0.3, 0.2


MAX_CLUTTER = 3


Bytes = NDArray[np.uint8]


Mask = NDArray[np.bool_]


Floats = NDArray[np.float32]


Outline = Sequence[NDArray[np.float64]]  # closed contours, each (points, 2); one inside another is a hole


Points = list[tuple[float, float]]


def draw(shape: str, seed: int, size: int, frame: int) -> tuple[Bytes, Mask]:
    """The scene of a seed with an object of the given outline, (size, size, 3), and the mask of its visible part."""
    rng = Generator(Philox(key=[seed, 0]))
    grid = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - np.float32(1)
    picture, wall = _background(rng, grid, frame)

    radius = _between(rng, *RADIUS)
    room = max(0.0, 1 - radius)
    place = tuple(_between(rng, -room, room) + _sway(rng, 0.25, frame) for _ in "xy")
    angle = _between(rng, -TURN, TURN) + _sway(rng, 25, frame)
    bend = [amount * _between(rng, -1, 1) for amount in BEND]
    outline = _outline(shape)
    if rng.random() < 0.5:
        outline = [contour * np.array([-1, 1]) for contour in outline]
    distance = _distance(_posed(outline, (place[0], place[1]), radius, angle, bend), grid)
    if rng.random() < HALO_P:
        glow = np.clip(1 - distance * np.float32(_between(rng, 4, 9)), 0, 1) * np.float32(_between(rng, 0, 0.6))
        _paint(picture, glow, np.full((3, 1, 1), rng.random() < 0.3, np.float32))
    cover = _cover(distance)
    _paint(picture, cover, _ink(rng, grid, place, angle, wall, distance / np.float32(radius)))
    if rng.random() < OCCLUDER_P:
        around = _turn(_between(rng, 0, 360))
        at = (place[0] + radius * around[0] + _sway(rng, 0.1, frame), place[1] + radius * around[1])
        front = _cover(_distance(_blob(rng, at, 0.12, 0.25), grid))
        _paint(picture, front, _color(rng))
        cover = cover * (1 - front)
    return _photograph(rng, picture, grid), cover > 0.5


def _background(rng: Generator, grid: Floats, frame: int) -> tuple[Floats, Floats]:
    """A wall with a pattern and clutter, (3, H, W), and the wall's colour (3, 1, 1)."""
    wall = _color(rng)
    x, y = (axis + np.float32(_sway(rng, 0.5, frame)) for axis in (grid[None, :], grid[:, None]))
    picture = wall + _texture(rng, x, y, len(grid)) * (_color(rng, wall, WALL_TEXTURE) - wall)
    for _ in range(int(rng.integers(1, MAX_CLUTTER + 1))):
        at = (_between(rng, -1, 1) + _sway(rng, 0.2, frame), _between(rng, -1, 1) + _sway(rng, 0.2, frame))
        _paint(picture, _cover(_distance(_blob(rng, at, 0.1, 0.22), grid)), _color(rng, wall, CLUTTER_COLOR))
    return picture, wall


def _ink(rng: Generator, grid: Floats, place: Sequence[float], angle: float, wall: Floats, depth: Floats) -> Floats:
    """The object's colour, pattern and shading, (3, H, W): lighter or darker than the wall by at least MIN_CONTRAST."""
    ink = _color(rng)
    gap = _lightness(ink) - _lightness(wall)
    if abs(gap) < MIN_CONTRAST:
        ink = ink + np.float32(math.copysign(MIN_CONTRAST, gap) - gap)
    cos, sin = (np.float32(value) for value in _turn(angle))
    x, y = grid[None, :] - np.float32(place[0]), grid[:, None] - np.float32(place[1])
    pattern = _texture(rng, x * cos + y * sin, y * cos - x * sin, len(grid))
    shade = 1 + np.float32(_between(rng, 0, 0.5)) * (np.clip(depth * np.float32(-4), 0, 1) - np.float32(0.6))
    painted: Floats = (ink + pattern * (_color(rng, ink, OBJECT_TEXTURE) - ink)) * shade
    return painted


def _photograph(rng: Generator, picture: Floats, grid: Floats) -> Bytes:
    """Light from one side, contrast, exposure and grain; (3, H, W) in 0..1 to (H, W, 3) bytes."""
    cos, sin = (np.float32(value) for value in _turn(_between(rng, 0, 360)))
    picture = picture * (1 + np.float32(_between(rng, 0, 0.35)) * (grid[None, :] * cos + grid[:, None] * sin))
    contrast, exposure = np.float32(_between(rng, 0.65, 1.15)), np.float32(0.5 + _between(rng, -0.1, 0.1))
    picture = (picture - np.float32(0.5)) * contrast + exposure
    grain = rng.random(picture.shape, dtype=np.float32) * 2 - 1
    picture = picture + np.float32(_between(rng, 0, GRAIN)) * grain
    return np.ascontiguousarray(np.clip(picture * 255 + np.float32(0.5), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _blob(rng: Generator, place: tuple[float, float], low: float, high: float) -> Outline:
    """A piece of clutter of a radius between low and high."""
    outline = _outline(CLUTTER[int(rng.integers(len(CLUTTER)))])
    return _posed(outline, place, _between(rng, low, high), _between(rng, 0, 360), (0, 0, 0, 0))


def _paint(picture: Floats, cover: Floats, color: Floats) -> None:
    """Lay a colour (3, 1, 1) or (3, H, W) over the picture (3, H, W) where cover (H, W) is 1, in place."""
    picture += cover * (color - picture)


def _lightness(color: Floats) -> float:
    red, green, blue = color.ravel().tolist()
    return 0.3 * red + 0.59 * green + 0.11 * blue


def _arc(x: float, y: float, rx: float, ry: float, angles: tuple[float, float], num_points: int) -> Points:
    """Points on an ellipse around (x, y), from the first angle to the last, both included."""
    first, last = angles
    turns = [_turn(first + (last - first) * i / (num_points - 1)) for i in range(num_points)]
    return [(x + rx * cos, y + ry * sin) for cos, sin in turns]


def _heart() -> Points:
    points = []
    for angle in range(0, 360, 12):
        height = 13 * _turn(angle)[0] - 5 * _turn(2 * angle)[0] - 2 * _turn(3 * angle)[0] - _turn(4 * angle)[0]
        points.append((0.95 * _turn(angle)[1] ** 3, -(height + 2.5) / 16.5))
    return points


@cache
def _outline(name: str) -> Outline:
    """The outline of a class, or of a piece of clutter, about as large as the unit circle."""
    cross = [(-0.28, -0.95), (0.28, -0.95), (0.28, -0.28)]
    cross += [(-y, x) for x, y in cross] + [(-x, -y) for x, y in cross] + [(y, -x) for x, y in cross]
    house = [(-1, -0.1), (0, -0.95), (0.35, -0.62), (0.35, -0.9), (0.62, -0.9), (0.62, -0.38), (1, -0.1), (0.72, -0.1)]
    house += [(0.72, 0.85), (0.22, 0.85), (0.22, 0.25), (-0.22, 0.25), (-0.22, 0.85), (-0.72, 0.85), (-0.72, -0.1)]
    fish, eye = [(-1, 0.6), (-0.8, 0), (-1, -0.6)], _arc(0.6, -0.12, 0.1, 0.1, (0, 315), 8)
    tips, dents = _arc(0, 0, 1, 1, (-90, 198), 5), _arc(0, 0, 0.42, 0.42, (-54, 234), 5)
    contours: dict[str, list[Points]] = {
        "arrow": [[(-1, -0.27), (0.1, -0.27), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.27), (-1, 0.27)]],
        "bolt": [[(0.35, -1), (-0.65, 0.18), (-0.08, 0.18), (-0.35, 1), (0.65, -0.22), (0.08, -0.22)]],
        "crescent": [_arc(0, 0, 0.95, 0.95, (45.4, 314.6), 20) + _arc(0.42, 0, 0.72, 0.72, (290.1, 69.9), 14)],
        "cross": [cross],
        "fish": [fish + _arc(0.25, 0, 0.75, 0.52, (-155, 155), 20), eye],
        "heart": [_heart()],
        "house": [house],
        "mushroom": [
            [*_arc(0, 0.05, 0.95, 0.95, (180, 360), 16), (0.28, 0.12), (0.36, 0.9), (-0.36, 0.9), (-0.28, 0.12)]
        ],
        "ring": [_arc(0, 0, 0.95, 0.95, (0, 342), 20), _arc(0, 0, 0.5, 0.5, (0, 337.5), 16)],
        "star": [[point for pair in zip(tips, dents, strict=True) for point in pair]],
        "bar": [[(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)]],
        "triangle": [_arc(0, 0, 1, 1, (0, 240), 3)],
        "square": [_arc(0, 0, 1, 1, (0, 270), 4)],
        "disc": [_arc(0, 0, 1, 1, (0, 330), 12)],
    }
    return [np.array(contour) for contour in contours[name]]


def _posed(outline: Outline, place: tuple[float, float], radius: float, angle: float, bend: Sequence[float]) -> Outline:
    """The outline in the picture; `bend` is (stretch, shear, perspective along x, along y), all zero for none."""
    cos, sin = _turn(angle)
    posed = []
    for contour in outline:
        x = contour[:, 0] * (1 + bend[0]) + contour[:, 1] * bend[1]
        y = contour[:, 1] * (1 - bend[0])
        near = radius / (1 + bend[2] * x + bend[3] * y)
        posed.append(np.stack([place[0] + near * (cos * x - sin * y), place[1] + near * (sin * x + cos * y)], axis=1))
    return posed


def _distance(outline: Outline, grid: Floats) -> Floats:
    """Signed distance (H, W) of the pixel centres to an outline, negative inside (even-odd rule)."""
    start = np.concatenate(outline).astype(np.float32)[:, :, None, None]  # (E edges, 2, 1, 1)
    stop = np.concatenate([np.roll(contour, -1, axis=0) for contour in outline]).astype(np.float32)[:, :, None, None]
    (ax, ay), (ex, ey) = (start[:, 0], start[:, 1]), (stop[:, 0] - start[:, 0], stop[:, 1] - start[:, 1])
    squared = np.maximum(ex * ex + ey * ey, np.float32(1e-9))
    slope = ex / np.where(ey == 0, np.float32(1), ey)
    dx = grid[None, None, :] - ax  # (E, 1, W)
    distance = np.empty((len(grid), len(grid)), np.float32)
    rows = max(1, 60_000 // (len(ax) * len(grid)))  # keeps the (E, rows, W) arrays in the cache
    for top in range(0, len(grid), rows):
        dy = grid[None, top : top + rows, None] - ay  # (E, rows, 1)
        along = dx * (ex / squared) + dy * (ey / squared)
        np.clip(along, 0, 1, out=along)
        away_x, away_y = along * ex - dx, along * ey - dy
        away = np.sqrt((away_x * away_x + away_y * away_y).min(axis=0))
        inside = np.logical_xor.reduce(((dy >= 0) != (dy >= ey)) & (dx < dy * slope), axis=0)
        distance[top : top + rows] = np.where(inside, -away, away)
    return distance


def _turn(angle: float) -> tuple[float, float]:
    """Cosine and sine, rounded so that every machine has the same."""
    return round(math.cos(math.radians(angle)), 6), round(math.sin(math.radians(angle)), 6)


def _between(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _color(rng: Generator, near: Floats | None = None, spread: float = 0) -> Floats:
    """A random color (3, 1, 1), each channel within `spread` of another color if one is given."""
    drawn = rng.random(3).astype(np.float32)[:, None, None]
    return np.float32(0.05) + np.float32(0.9) * drawn if near is None else near + np.float32(spread) * (2 * drawn - 1)


def _sway(rng: Generator, amount: float, frame: int) -> float:
    """Distance that something has moved along its own smooth path, which starts at 0."""
    rate, start, height = _between(rng, 0.15, 0.5), _between(rng, 0, 360), _between(rng, -amount, amount)
    return height * (_turn(start + 360 * rate * frame / FRAME_RATE)[1] - _turn(start)[1])


def _cover(distance: Floats) -> Floats:
    """The share (H, W) of each pixel that lies inside."""
    cover: Floats = np.clip(np.float32(0.5) - distance * np.float32(len(distance) / 2), 0, 1)
    return cover


def _wave(u: Floats, sharp: float) -> Floats:
    """A triangle wave of period 1 between 0 and 1, made steeper by `sharp`."""
    wave = np.abs(u - np.floor(u) - np.float32(0.5))
    steep: Floats = np.clip((wave * 2 - np.float32(0.5)) * np.float32(sharp) + np.float32(0.5), 0, 1)
    return steep


def _clouds(rng: Generator, u: Floats, v: Floats) -> Floats:
    """Smooth random values between 0 and 1, one bump a unit."""
    lattice = rng.random((16, 16)).astype(np.float32)
    column, row = np.floor(u), np.floor(v)
    s, t = u - column, v - row
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    i, j = row.astype(np.int64) & 15, column.astype(np.int64) & 15
    below, right = (i + 1) & 15, (j + 1) & 15
    upper = lattice[i, j] + s * (lattice[i, right] - lattice[i, j])
    lower = lattice[below, j] + s * (lattice[below, right] - lattice[below, j])
    clouds: Floats = upper + t * (lower - upper)
    return clouds


def _texture(rng: Generator, x: Floats, y: Floats, size: int) -> Floats:
    """A random pattern between 0 and 1 at (x, y): shade, stripes, checks, dots or clouds."""
    cos, sin = (np.float32(value) for value in _turn(_between(rng, 0, 360)))
    scale, shift, kind = _between(rng, 1.2, 3.4), rng.random(2).astype(np.float32) * 16, int(rng.integers(5))
    u, v = x * cos + y * sin, y * cos - x * sin
    if kind == 0:
        pattern: Floats = np.clip(u * np.float32(0.4) + np.float32(0.5), 0, 1)
        return pattern
    u, v, sharp = u * np.float32(scale) + shift[0], v * np.float32(scale) + shift[1], 0.3 * size / scale
    if kind == 1:
        return _wave(u, sharp)
    if kind == 2:
        a, b = _wave(u * np.float32(0.7), sharp), _wave(v * np.float32(0.7), sharp)
        pattern = a + b - 2 * a * b
        return pattern
    if kind == 3:
        a, b = _wave(u, 1), _wave(v, 1)
        pattern = np.clip((np.float32(0.45) - a * a - b * b) * np.float32(sharp) + np.float32(0.5), 0, 1)
        return pattern
    return _clouds(rng, u, v)
