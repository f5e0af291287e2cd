import numpy as np
import pytest
from PIL import Image

from hpclbfl.data.augment import crop_flip, crop_flip_offsets, fit, padding, random_words, resized_crop_flip

STORE = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.int64)


def expected_crop_flip(image: np.ndarray, top: int, left: int, flip: bool) -> np.ndarray:
    """The definition: pad with zeros, cut out, mirror."""
    pad = padding(image.shape[1])
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    crop = padded[:, pad + top : pad + top + height, pad + left : pad + left + width]
    return crop[:, :, ::-1] if flip else crop


def test_padding_is_4_at_32_px() -> None:
    assert [padding(side) for side in (4, 8, 32, 64)] == [1, 1, 4, 8]


def test_hand_computed_crops_of_a_tiny_image(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.uint8)
    store = np.broadcast_to(image, (1, 3, 3, 3)).copy()
    offsets = (np.array([0, -1, 1, 0]), np.array([0, 1, -1, 0]), np.array([False, False, True, True]))
    monkeypatch.setattr("hpclbfl.data.augment.crop_flip_offsets", lambda *args: offsets)
    out = np.full((4, 3, 3, 3), 77, np.uint8)
    crop_flip(store, zeros(4), zeros(4), 0, out)
    assert out[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert out[1, 0].tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]  # moved up into the padding, and to the right
    assert out[2, 0].tolist() == [[5, 4, 0], [8, 7, 0], [0, 0, 0]]  # down and left, mirrored
    assert out[3, 0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert all(np.array_equal(out[:, 0], out[:, channel]) for channel in (1, 2))


def test_crop_flip_is_its_definition() -> None:
    samples, passes = np.arange(30), np.arange(30) % 4
    out = np.empty((30, 3, 8, 8), np.uint8)
    crop_flip(STORE, samples, passes, 5, out)
    tops, lefts, flips = crop_flip_offsets(samples, passes, 5, 8, 8)
    for i in range(30):
        assert np.array_equal(out[i], expected_crop_flip(STORE[i], tops[i], lefts[i], flips[i]))


def test_keyed_by_seed_pass_and_sample_alone() -> None:
    samples, passes = np.arange(30), np.arange(30) % 3
    whole = np.empty((30, 3, 8, 8), np.uint8)
    crop_flip(STORE, samples, passes, 5, whole)
    order = np.random.default_rng(1).permutation(30)
    for part in (order[:7], order[7:]):
        out = np.empty((len(part), 3, 8, 8), np.uint8)
        crop_flip(STORE, samples[part], passes[part], 5, out)
        assert np.array_equal(out, whole[part])
    for seed, shift in ((6, 0), (5, 1)):
        out = np.empty_like(whole)
        crop_flip(STORE, samples, passes + shift, seed, out)
        assert not np.array_equal(out, whole)


def test_offsets_are_uniform() -> None:
    samples = np.arange(200_000)
    tops, lefts, flips = crop_flip_offsets(samples, zeros(len(samples)), 3, 32, 32)
    for offsets in (tops, lefts):
        counts = np.bincount(offsets + 4, minlength=9)
        assert len(counts) == 9 and np.abs(counts / len(samples) - 1 / 9).max() < 0.005
    assert flips.mean() == pytest.approx(0.5, abs=0.005)
    assert abs(np.corrcoef([tops, lefts, flips])[np.triu_indices(3, 1)]).max() < 0.01


def test_words_of_neighbouring_keys_are_unrelated() -> None:
    samples = np.arange(1000)
    words = np.concatenate(
        [random_words(seed, samples, np.full(1000, p), 2).ravel() for seed in (0, 1, 2**63) for p in (0, 1)]
    )
    assert len(np.unique(words)) == len(words)
    bits = np.unpackbits(words.view(np.uint8))
    assert bits.mean() == pytest.approx(0.5, abs=0.005)


def test_seeds_of_any_size() -> None:
    assert random_words(2**70 + 1, zeros(1), zeros(1), 1).shape == (1, 1)


def gradient(width: int, height: int) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


def test_fit_cuts_the_centre_of_a_photograph() -> None:
    out = np.asarray(fit(gradient(600, 300), 224)).astype(float)
    assert out.shape == (224, 224, 3)
    # 600x300 becomes 512x256; the centre's 224 of 512 columns and of 256 rows remain.
    assert out[112, [0, -1], 0] == pytest.approx([255 * 144 / 512, 255 * 368 / 512], abs=2)
    assert out[[0, -1], 112, 1] == pytest.approx([255 * 16 / 256, 255 * 240 / 256], abs=2)


def test_fit_fills_the_frame_with_a_small_square_image() -> None:
    image = gradient(32, 32)
    out = np.asarray(fit(image, 64))
    assert out.shape == (64, 64, 3) and out[0, 0, 0] == 0 and out[0, -1, 0] == 255
    assert fit(image, None) is image and fit(image, 32) is image


@pytest.mark.parametrize("size", [(600, 300), (33, 500), (1, 1), (7, 2000)])
def test_fit_of_any_shape(size: tuple[int, int]) -> None:
    assert fit(gradient(*size), 48).size == (48, 48)
    assert resized_crop_flip(gradient(*size), 3, 1, 0, 48).size == (48, 48)


def test_resized_crop_is_keyed_and_varies() -> None:
    image = gradient(90, 60)

    def crop(sample: int, pass_: int, seed: int) -> bytes:
        return resized_crop_flip(image, sample, pass_, seed, 32).tobytes()

    assert crop(4, 2, 9) == crop(4, 2, 9)
    assert len({crop(4, 2, 9), crop(5, 2, 9), crop(4, 3, 9), crop(4, 2, 10)}) == 4


def test_resized_crop_has_the_areas_and_aspects_it_should() -> None:
    image, shares, aspects, flips = gradient(200, 200), [], [], []
    for sample in range(400):
        out = np.asarray(resized_crop_flip(image, sample, 0, 1, 16)).astype(float) / 255 * 199
        width = (out[8, -1, 0] - out[8, 0, 0]) * 16 / 15
        height = (out[-1, 8, 1] - out[0, 8, 1]) * 16 / 15
        flips.append(width < 0)
        shares.append(abs(width) * height / 200**2)
        aspects.append(abs(width) / height)
    assert 0.07 < min(shares) < 0.12 and 0.9 < max(shares) < 1.05
    assert 0.7 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.4
    assert 0.4 < np.mean(flips) < 0.6
