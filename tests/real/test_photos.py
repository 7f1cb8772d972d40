"""One reader of photos: training and predict.py get the same pixels of the same file."""

import numpy as np
import pytest
from PIL import Image

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
    """Of a square photo, of whatever mode, whether it is the whole, the person's box, or the centre."""
    noise = np.random.default_rng(1).integers(0, 255, (40, 40, 4), dtype=np.uint8)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        Image.fromarray(noise).convert(mode).save(tmp_path / f"{mode}.png")
        whole = read_person(tmp_path / f"{mode}.png", None, 24)
        assert np.array_equal(whole, read_person(tmp_path / f"{mode}.png", (20, 20, 40), 24))
        assert np.array_equal(whole, read_image(tmp_path / f"{mode}.png", 24))
    Image.fromarray(noise[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    for read in (lambda path: read_person(path, None, 24), read_image):
        with pytest.raises(ValueError, match="more than 8 bits"):
            read(tmp_path / "deep.png")


def test_a_photo_is_turned_upright_and_cropped_to_its_centre(tmp_path, capsys):
    """Left half red, right half blue, as seen; stored turned, with the note that cameras leave."""
    seen = np.zeros((80, 200, 3), np.uint8)
    seen[:, :100], seen[:, 100:] = (255, 0, 0), (0, 0, 255)
    seen[:, :50] = seen[:, 150:] = (0, 255, 0)  # cut off
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(np.rot90(seen)).save(tmp_path / "photo.png", exif=exif)
    pixels = read_image(tmp_path / "photo.png")
    assert "200 x 80" in capsys.readouterr().out
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert (pixels[:, :30] == (255, 0, 0)).all() and (pixels[:, 34:] == (0, 0, 255)).all()


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
