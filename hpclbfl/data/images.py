"""Image files: bytes of any origin -> 8-bit RGB, or one line about why not.

    1-bit, grey, palette, CMYK, YCbCr   converted
    16-bit grey                         scaled, value / 257 rounded
    16-bit colour                       its high byte
    alpha                               left out: the colour below it counts, also where it is transparent
    orientation (EXIF)                  applied
    several pictures in a file          the first (animations, pages)

Floating-point pixels and other depths have no scale that all agree on; they are refused.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, WebPImagePlugin

from hpclbfl.core.diagnostics import keep_silent
from hpclbfl.core.errors import DataError

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
"""Of files that are taken for images; what they hold decides how they are read."""
MAX_PIXELS = 178_956_970
"""Of an image, where PIL, too, speaks of a decompression bomb; 0.5 GB as RGB."""

# Others, which PIL knows, start programs (EPS) or are no formats for training sets.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", WebPImagePlugin.WebPImageFile.format)
_PLAIN_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0
# What PIL raises over damaged files, by format.
_UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the value of EXIF's orientation."""

# PIL's warnings about files that it reads anyway; the size of images is bounded here.
keep_silent("PIL")
for category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=category, module=r"PIL\.")


def decode(data: bytes, where: str) -> Image.Image:
    """Bytes of an image file -> RGB image, upright.

    Raises:
        DataError: not a whole image, too large, or of a depth that has no scale; the message begins with `where`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{where}: has {width} x {height} pixels, at most {MAX_PIXELS:,} are read")
            is_deep = _is_16_bit_grey(image)
            if not is_deep and image.mode not in _PLAIN_MODES:
                raise DataError(f"{where}: has {_depth(image)}: save it with 8 bits per channel, or as 16-bit grey")
            image.load()
            found = _scaled(image) if is_deep else image
            return _turned(found if found.mode == "RGB" else found.convert("RGB"), _orientation(image))
    except _UNREADABLE as error:
        reason = str(error).split(":")[0].split("<")[0].strip() or type(error).__name__
        raise DataError(f"{where}: not a readable image: {reason}: replace the file") from error


def holds_several(data: bytes) -> bool:
    """Whether an image file holds more pictures than the one that is used; False for what cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return bool(getattr(image, "is_animated", False))
    except _UNREADABLE:
        return False


def encode_png(image: Image.Image) -> bytes:
    """The image as a PNG file, lossless."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _is_16_bit_grey(image: Image.Image) -> bool:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # PIL reads 12 bits as if they were 16, and signed ones as 32.
        return image.mode.startswith("I;16") and image.tag_v2.get(_BITS_PER_SAMPLE) == (16,)
    # PIL's modes of PNG and of PGM, whose values it has scaled to 16 bits.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _scaled(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits, so that black stays 0 and white becomes 255."""
    values = np.asarray(image).astype(np.uint32)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 65535 - values
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _depth(image: Image.Image) -> str:
    if image.mode == "F":
        return "floating-point pixels"
    if image.mode.startswith("I"):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
        return f"{bits[0]}-bit whole numbers with another scale" if bits else "32-bit whole numbers"
    return f"pixels of mode {image.mode}"


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except _UNREADABLE:
        # A photograph with damaged metadata is still a photograph.
        return 1
    return found if isinstance(found, int) else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
