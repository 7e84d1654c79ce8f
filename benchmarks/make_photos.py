"""Photos for the benchmark, made here: 1/f noise with shapes on it, as JPEG of a natural size in bytes, or WebP.

The entropy of a JPEG decides how long it takes to decode, so its quality is chosen to reach the size.

    python benchmarks/make_photos.py FOLDER --number 1000    # 500x375, about 95 kB each
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def photo(height: int, width: int, seed: int, falloff: float = 1.3) -> Image.Image:
    """Clouds of colour with amplitudes of 1 / frequency^`falloff`, and a dozen shapes with sharp edges."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    layers = []
    for _ in range(3):
        waves = rng.normal(size=(2, *frequency.shape))
        layers.append(np.fft.irfft2((waves[0] + 1j * waves[1]) / np.maximum(frequency, 1) ** falloff, (height, width)))
    light, warm, green = (layer / layer.std() for layer in layers)
    pixels = np.stack([light + 0.4 * warm, light + 0.2 * green, light - 0.4 * warm], axis=-1) * 50 + 120
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(image, "RGBA")
    for _ in range(12):
        (left, top), size = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.05, 0.3) * height
        color = (*rng.integers(0, 256, 3).tolist(), 150)
        draw = canvas.ellipse if rng.random() < 0.5 else canvas.rectangle
        draw((left, top, left + size * rng.uniform(0.5, 2), top + size), fill=color)
    return image


def jpeg(image: Image.Image, num_bytes: int) -> bytes:
    """The JPEG (4:2:0) whose quality brings it nearest to `num_bytes`."""
    qualities = range(30, 100)
    low, high = 0, len(qualities) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if len(_save(image, qualities[middle])) < num_bytes else (low, middle)
    return min((_save(image, q) for q in qualities[max(low - 1, 0) : low + 1]), key=lambda d: abs(len(d) - num_bytes))


def webp(image: Image.Image, quality: int = 80) -> bytes:
    """The WebP of `image`."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality)
    return file.getvalue()


def _save(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def main() -> None:
    """Sixteen photos, each many times: what matters is the time to read and decode one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=1000)
    options = parser.parse_args()
    files = [jpeg(photo(375, 500, seed), 95_000) for seed in range(min(16, options.number))]
    options.folder.mkdir(parents=True, exist_ok=True)
    for number in range(options.number):
        (options.folder / f"{number:06}.jpg").write_bytes(files[number % len(files)])
    print(f"{options.number} photos of {sum(map(len, files)) // len(files)} bytes on average")


if __name__ == "__main__":
    main()
