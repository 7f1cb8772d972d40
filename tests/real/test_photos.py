"""One reader of photos: training and predict.py get the same pixels of the same file."""

import numpy as np
import pytest
from PIL import Image

from real import photos
from real.photos import read_image, read_person


def test_a_box_is_cut_out_padded_with_black_and_resized(tmp_path):
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_person(tmp_path / "a.png", (10, 8, 8), 8), pixels[4:12, 6:14])
    corner = read_person(tmp_path / "a.png", (0, 20, 8), 8)
    assert np.array_equal(corner[:4, 4:], pixels[16:, :4]) and not corner[4:].any() and not corner[:, :4].any()
    whole = read_person(tmp_path / "a.png", None, 30)
    assert np.array_equal(whole[5:25], pixels) and not whole[:5].any() and not whole[25:].any()
    Image.fromarray(np.full((40, 40), 200, np.uint8)).save(tmp_path / "grey.png")
    assert (read_person(tmp_path / "grey.png", (20, 20, 30), 64) == 200).all()


@pytest.mark.parametrize("size, shown", [((20_000, 2_000), (4, 40)), ((2_000, 20_000), (40, 4))])
def test_a_panorama_is_read_whole_without_the_memory_of_its_square(tmp_path, size, shown):
    Image.new("L", size, 255).save(tmp_path / "a.png")
    bright = read_image(tmp_path / "a.png", 40)[..., 0] > 100
    assert (bright.any(1).sum(), bright.any(0).sum()) == shown
    bright = read_person(tmp_path / "a.png", (size[0] / 2, size[1] / 2, 40_000), 40)[..., 0] > 100
    assert (bright.any(1).sum(), bright.any(0).sum()) == (shown[0] / 2, shown[1] / 2)


def test_a_photo_is_turned_upright_unless_a_box_says_where_the_person_is_stored(tmp_path):
    """Boxes are of the pixels as they are stored; without one, training sees what predict.py sees."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_person(tmp_path / "a.png", (8, 8, 16), 16), pixels)
    assert np.array_equal(read_person(tmp_path / "a.png", None, 16), np.rot90(pixels, -1))
    assert np.array_equal(read_image(tmp_path / "a.png", 16), np.rot90(pixels, -1))


def test_training_and_predict_read_the_same_pixels(tmp_path):
    """Of a photo of whatever mode, whether it is the whole or the person's box."""
    noise = np.random.default_rng(1).integers(0, 255, (40, 40, 4), dtype=np.uint8)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        Image.fromarray(noise).convert(mode).save(tmp_path / f"{mode}.png")
        whole = read_person(tmp_path / f"{mode}.png", None, 24)
        assert np.array_equal(whole, read_person(tmp_path / f"{mode}.png", (20, 20, 40), 24))
        assert np.array_equal(whole, read_image(tmp_path / f"{mode}.png", 24))
    Image.fromarray(noise).convert("RGB").quantize(9).save(tmp_path / "palette.png", transparency=3)
    Image.fromarray(noise).save(tmp_path / "photo.avif")
    for name in ("palette.png", "photo.avif"):
        whole = read_person(tmp_path / name, None, 24)
        assert np.array_equal(whole, read_image(tmp_path / name, 24)) and 0 < whole.std()


def test_of_16_bits_the_upper_8_are_read(tmp_path):
    """Alike by training and by predict.py, in grey and in colour; neither white, as cut at 255, nor black."""
    deep = np.random.default_rng(2).integers(0, 65_536, (40, 40), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "grey.png")
    with Image.open(tmp_path / "grey.png") as file:
        assert file.mode == "I;16"
    for read in (read_image, lambda path, size: read_person(path, None, size),
                 lambda path, size: read_person(path, (20, 20, 40), size)):
        assert np.array_equal(read(tmp_path / "grey.png", 40), np.stack([deep >> 8] * 3, -1))


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.webp", "photo.avif"])
def test_the_orientation_of_every_format_is_read(tmp_path, name):
    """Stored: the left half light, the right half dark. Upright, which a box prevents, the light half is above."""
    stored, exif = np.zeros((64, 64, 3), np.uint8), Image.Exif()
    stored[:, :32], exif[0x0112] = 250, 6
    Image.fromarray(stored).save(tmp_path / name, exif=exif)
    for pixels in (read_image(tmp_path / name), read_person(tmp_path / name, None, 64)):
        assert pixels[:24].min() > 200 and pixels[40:].max() < 50
    boxed = read_person(tmp_path / name, (32, 32, 64), 64)
    assert boxed[:, :24].min() > 200 and boxed[:, 40:].max() < 50


def test_what_is_not_read_says_what_is(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "FORMATS", tuple(name for name in photos.FORMATS if name != "HEIF"))
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))  # as an iPhone begins it
    (tmp_path / "video.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(64))
    for name, words in (("photo.heic", "pip install pillow-heif$"), ("video.mp4", "what is read: AVIF, BMP, .*WEBP$")):
        for read in (read_image, lambda path: read_person(path, None, 64)):
            with pytest.raises(ValueError, match=f"{name} cannot be used as an image: .*{words}"):
                read(tmp_path / name)


def test_heic_is_read_where_its_package_is_there(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 64), (250, 0, 0))).save(tmp_path / "photo.heic")
    for pixels in (read_image(tmp_path / "photo.heic"), read_person(tmp_path / "photo.heic", (32, 32, 64), 64)):
        assert np.abs(pixels.astype(int) - (250, 0, 0)).max() < 9


def test_a_photo_is_turned_upright_and_read_whole_with_black_beside(tmp_path, capsys):
    """Left half red, right half blue, as seen; stored turned, with the note that cameras leave. Nobody's feet are cut
    off, and predict.py reads it as training does."""
    seen = np.zeros((80, 200, 3), np.uint8)
    seen[:, :100], seen[:, 100:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(np.rot90(seen)).save(tmp_path / "photo.png", exif=exif)
    pixels = read_image(tmp_path / "photo.png")
    assert "200 x 80" in capsys.readouterr().out
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert (pixels[22:42, :30] == (255, 0, 0)).all() and (pixels[22:42, 34:] == (0, 0, 255)).all()
    assert (pixels[:17] == 0).all() and (pixels[47:] == 0).all()
    assert np.array_equal(pixels, read_person(tmp_path / "photo.png", None, 64))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode, capsys):
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    Image.new("RGBA", (64, 64), (0, 0, 0, 255)).convert(mode).save(path)
    assert (read_image(path) == 0).all()
    assert capsys.readouterr().out == ""


def test_transparent_is_white(tmp_path):
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "photo.png")
    assert (read_image(tmp_path / "photo.png") == 255).all()


def test_pixels_of_the_built_in_size_are_not_touched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    assert (read_image(tmp_path / "photo.png") == pixels).all()
