"""Image files of any kind become 8-bit RGB with the right pixels, or one line."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from hpclbfl.core.errors import DataError
from hpclbfl.data.images import decode, holds_several

DEEP = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
SCALED = [0, 0, 1, 1, 128, 254, 255, 255]
"""value / 257, rounded."""


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    image = decode(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(data):
    found = pixels(data)
    assert (found == found[..., :1]).all()
    return found[..., 0].tolist()


def reason(data):
    with pytest.raises(DataError) as caught:
        decode(data, "set/a.png")
    assert str(caught.value).startswith("set/a.png: ") and "\n" not in str(caught.value)
    return str(caught.value).removeprefix("set/a.png: ")


def white_is_zero(data):
    """The same TIFF file with its values the other way round."""
    tag = struct.pack("<HHI", 262, 3, 1)
    at = data.index(tag) + len(tag)
    assert data[at : at + 2] == b"\1\0"
    return data[:at] + b"\0\0" + data[at + 2 :]


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(DEEP), "PNG"),
        saved(Image.fromarray(DEEP), "TIFF"),
        saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
        saved(Image.frombytes("I;16B", (8, 1), DEEP.astype(">u2").tobytes()), "TIFF"),
        white_is_zero(saved(Image.fromarray(65535 - DEEP), "TIFF")),
        b"P5 8 1 65535\n" + DEEP.astype(">u2").tobytes(),
        b"P2 8 1 65535\n" + " ".join(map(str, DEEP[0])).encode(),
    ],
    ids=["png", "tiff", "lzw", "big-endian", "white-is-zero", "pgm", "plain-pgm"],
)
def test_16_bit_grey_is_scaled(data):
    assert grey(data) == [SCALED]


def test_every_16_bit_value_becomes_the_nearest_8_bit_one():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.array(grey(saved(Image.fromarray(values), "PNG")))
    np.testing.assert_array_equal(found, np.rint(values / 257))


def test_shallow_grey():
    two = Image.fromarray(np.array([[0, 255]], np.uint8))
    assert grey(saved(two.convert("1"), "PNG")) == grey(saved(two.convert("1"), "TIFF")) == [[0, 255]]
    assert grey(b"P5 3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes()) == [[0, 128, 255]]
    assert grey(b"P5 3 1 4\n\0\2\4") == [[0, 128, 255]]


def test_colour_modes():
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    files = [saved(image.quantize(4), "PNG"), saved(image.convert("RGBA"), "PNG")]
    files += [saved(image.convert(mode), "TIFF") for mode in ("CMYK", "YCbCr")]
    for data in files:
        np.testing.assert_allclose(pixels(data), [[[10, 20, 30]] * 2], atol=2)


def test_the_colour_below_transparency_counts():
    assert pixels(saved(Image.new("RGBA", (1, 1), (10, 20, 30, 0)), "PNG")).tolist() == [[[10, 20, 30]]]
    assert pixels(saved(Image.new("LA", (1, 1), (100, 0)), "PNG")).tolist() == [[[100, 100, 100]]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "has 32-bit whole numbers with another scale"),
        (saved(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), "has floating-point pixels"),
        (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 1.0), "has floating-point pixels"),
        (saved(Image.new("LAB", (2, 2)), "TIFF"), "has pixels of mode LAB"),
    ],
    ids=["int32", "float", "pfm", "lab"],
)
def test_other_depths_are_refused(data, expected):
    assert reason(data) == f"{expected}: save it with 8 bits per channel, or as 16-bit grey"


TURNED = {
    1: [[0, 1, 2], [3, 4, 5]], 2: [[2, 1, 0], [5, 4, 3]], 3: [[5, 4, 3], [2, 1, 0]], 4: [[3, 4, 5], [0, 1, 2]],
    5: [[0, 3], [1, 4], [2, 5]], 6: [[3, 0], [4, 1], [5, 2]], 7: [[5, 2], [4, 1], [3, 0]], 8: [[2, 5], [1, 4], [0, 3]],
}  # fmt: skip
"""Two rows of three pixels, by EXIF's orientation."""


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("JPEG", {})],
)
def test_orientation_is_applied_once(orientation, kind, options):
    exif = Image.Exif()
    exif[0x112] = orientation
    # Blocks of a JPEG's size, so that no colour mixes with its neighbour's.
    image = Image.fromarray(np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8)))
    if kind == "WEBP":
        image = image.convert("RGB")
    found = np.array(grey(saved(image, kind, exif=exif, **options)))[8::16, 8::16]
    assert (found / 40).round().tolist() == TURNED[orientation]


def test_orientation_of_16_bit_grey_and_one_that_does_not_exist():
    exif = Image.Exif()
    exif[0x112] = 9
    assert grey(saved(Image.fromarray(DEEP), "PNG", exif=exif)) == [SCALED]
    exif[0x112] = 6
    assert grey(saved(Image.fromarray(DEEP), "PNG", exif=exif)) == [[value] for value in SCALED]


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + b"\xff" * 40, b"x"])
def test_torn_exif_takes_no_image(exif):
    assert decode(saved(Image.new("RGB", (3, 2)), "JPEG", exif=exif), "x").size == (3, 2)


def test_the_first_of_several_pictures():
    first, second = (Image.new("RGB", (2, 2), colour) for colour in ((200, 0, 0), (0, 200, 0)))
    for kind, options in (("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("MPO", {})):
        data = saved(first, kind, save_all=True, append_images=[second], **options)
        assert holds_several(data), kind
        np.testing.assert_allclose(pixels(data)[0, 0], [200, 0, 0], atol=2)
        if kind != "MPO":
            assert not holds_several(saved(first, kind, **options))
    assert not holds_several(b"no image")


def png_of_size(width, height):
    """A PNG file whose header declares a size."""
    data = bytearray(saved(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def test_what_is_no_image():
    assert reason(b"") == reason(b"text") == "not a readable image: cannot identify image file: replace the file"
    whole = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)), "JPEG")
    assert reason(whole[:-300]).startswith("not a readable image: image file is truncated")
    assert reason(png_of_size(40_000, 40_000)).startswith(
        "not a readable image: Image size (1600000000 pixels) exceeds"
    )
    assert reason(png_of_size(12_000, 10_000)).startswith("not a readable image: image file is truncated")


def test_formats_that_start_programs_are_not_opened():
    # PIL gives an EPS file to Ghostscript, whatever its name.
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
    assert reason(eps) == "not a readable image: cannot identify image file: replace the file"


def test_the_bound_holds_where_pils_is_lifted(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(png_of_size(20_000, 10_000)) == "has 20000 x 10000 pixels, at most 178,956,970 are read"


def test_pil_says_nothing_by_itself(tmp_path):
    odd = saved(Image.new("P", (2, 2)), "PNG", transparency=b"\0\1")
    torn = saved(Image.new("RGB", (3, 2)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    for name, data in (("odd", odd), ("torn", torn), ("large", png_of_size(12_000, 10_000))):
        (tmp_path / name).write_bytes(data)
    program = f"""
from pathlib import Path
from hpclbfl.data.images import decode
from hpclbfl.core.errors import DataError
for name in ("odd", "torn", "large"):
    try:
        decode(Path({str(tmp_path)!r}, name).read_bytes(), name)
    except DataError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
