"""Files without the suffix of an image: their kind by their first bytes, and what can be done to use them."""

import re

NUM_BYTES = 512
"""Bytes that are looked at."""

_KINDS = (
    (rb"\xff\xd8\xff", "JPEG: name it .jpg"),
    (rb"\x89PNG\r\n\x1a\n", "PNG: name it .png"),
    (rb"RIFF....WEBP", "WebP: name it .webp"),
    (rb"(?:II[*+]\x00|MM\x00[*+])", "TIFF, or raw data of a camera: name it .tif, or convert it to PNG"),
    (rb"GIF8[79]a", "GIF: name it .gif"),
    (rb"P[1-6]\s", "PNM: name it .ppm"),
    (rb"BM.{4}\0\0\0\0", "BMP: name it .bmp"),
    (rb"....ftyp(?:avif|avis)", "AVIF: convert it to PNG or JPEG"),
    (rb"....ftyp(?:hei|hev|mif1|msf1)", "HEIC: convert it to PNG or JPEG"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000: convert it to PNG"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL: convert it to PNG or JPEG"),
    (rb"8BPS", "Photoshop: convert it to PNG"),
    (rb"v/1\x01", "OpenEXR: convert it to TIFF"),
    (rb".{128}DICM", "DICOM: convert it to 16-bit PNG"),
    (rb"P[fF]\n", "PFM: convert it to TIFF"),
    (rb"\x1f\x8b", "gzip: unpack it"),
    (rb"BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "an archive: unpack it, or make a zip of its folder"),
    (rb".{257}ustar", "tar: unpack it, tar xf"),
    (rb"PK\x03\x04", "zip, or numpy's .npz: give the zip itself as DATA; of arrays write PNG files"),
    (rb"PAR1", "Parquet: write its images as files"),
    (rb"\x89HDF", "HDF5: write its images as files"),
    (rb"\x93NUMPY", "an array of numpy: write its images as PNG files"),
    (rb"....ftyp", "video: take frames out with ffmpeg"),
)
_MAGIC = re.compile(b"|".join(b"(%s)" % kind for kind, _ in _KINDS), re.DOTALL)


def describe_content(start: bytes) -> str:
    """`JPEG: name it .jpg` for the first bytes of a file; an empty string for text and for unknown kinds."""
    match = _MAGIC.match(start)
    return _KINDS[match.lastindex - 1][1] if match and match.lastindex else ""


def is_utf16(start: bytes) -> bool:
    """Whether the bytes look like text in UTF-16 without its mark."""
    even, odd = start[::2], start[1::2]
    zeros = max(even.count(0) / max(len(even), 1), odd.count(0) / max(len(odd), 1))
    return zeros > 0.8 and bool(even.strip(b"\0")) != bool(odd.strip(b"\0"))
