"""Images: small files of every format, with bytes changed, cut off, or put behind another's head."""

import io

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from hpclbfl.core.errors import DataError
from hpclbfl.data.images import decode, holds_several
from tests.fuzz.budget import fuzz


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seeds():
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (9, 7)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x112] = 6
    more = {"save_all": True, "append_images": [colour.rotate(180), colour]}
    files = [saved(colour, kind) for kind in ("BMP", "PPM", "GIF", "JPEG", "PNG", "TIFF", "WEBP")]
    files += [saved(colour, kind, exif=exif) for kind in ("JPEG", "PNG", "TIFF", "WEBP")]
    files += [saved(colour, kind, **more) for kind in ("GIF", "PNG", "TIFF", "WEBP", "MPO")]
    files += [saved(colour.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")]
    files += [saved(deep, "PNG"), saved(deep, "TIFF", compression="tiff_lzw"), saved(colour.convert("CMYK"), "JPEG")]
    files += [saved(colour, "TIFF", compression=name) for name in ("tiff_deflate", "jpeg", "packbits", "tiff_lzw")]
    files += [saved(colour.convert("1"), "TIFF", compression="group4"), b"P2 2 2 9\n1 2 3 4", b"P5 1 1 65535\n\0\1"]
    return files


_BYTES = st.tuples(
    st.floats(0, 1, exclude_max=True) | st.floats(0, 0.1),
    st.sampled_from([b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]) | st.binary(max_size=8),
)


@pytest.mark.filterwarnings("ignore")
def test_image():
    files = seeds()
    for data in files:
        assert decode(data, "x").mode == "RGB"

    def check(example):
        first, second, cut, changes, length = example
        data = bytearray(files[first][: int(cut * 60)] + files[second][int(cut * 60) :])
        for place, new in changes:
            at = int(place * len(data))
            data[at : at + len(new)] = new
        data = bytes(data[: int(length * len(data))])
        assert holds_several(data) in (True, False)
        try:
            found = decode(data, "set/x.png")
        except DataError as error:
            assert str(error).startswith("set/x.png: ") and "\n" not in str(error) and len(str(error)) < 300
        else:
            assert found.mode == "RGB" and found.tobytes()

    places = st.integers(0, len(files) - 1)
    same = st.tuples(places, st.just(0.0)).map(lambda pair: (pair[0], pair[0], pair[1]))
    two = st.tuples(places, places, st.floats(0, 1))
    examples = st.tuples(same | two, st.lists(_BYTES, max_size=5), st.just(1.0) | st.floats(0, 1)).map(
        lambda parts: (*parts[0], *parts[1:])
    )
    assert fuzz(examples, check) > 0
