"""TODO header."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000  # of a photo; one larger than this would only fill the memory
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # pillow knows more: one, EPS, is a program to be run


def read_image(path: str | Path, size: int = 64) -> np.ndarray:
    """A photo as the policy reads it, (size, size, 3) uint8: upright, white where transparent, only its centre square.

    Raises ValueError, in one sentence, for a file that is missing, broken, no image, or too large."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are too many, make it smaller")
            if file.mode[0] in "IF":  # would be cut at 255
                raise ValueError("its grey has more than 8 bits, save it with 8")
            photo = ImageOps.exif_transpose(file).convert("RGBA")  # cameras note which way is up, and do not turn
    except Exception as error:  # the system, pillow and each of its formats raise their own
        raise ValueError(f"{path} cannot be used as an image: {error}") from error
    if photo.width != photo.height:
        print(f"{path} is {photo.width} x {photo.height} pixels: only its centre square is looked at.")
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return np.array(ImageOps.fit(photo, (size, size), Image.Resampling.LANCZOS))


def picture(path: Path, box: tuple[float, float, float] | None, size: int) -> np.ndarray:
    """The square of an image, black where it leaves the image: uint8 (size, size, 3). Without a box all of it."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except Exception as error:  # pillow's decoders each raise their own
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
    x, y, side = box or (image.width / 2, image.height / 2, max(image.size))
    left, top, side = round(x - side / 2), round(y - side / 2), round(side)
    if left >= image.width or top >= image.height or left + side <= 0 or top + side <= 0:
        raise ValueError(f"the person's box lies outside of {path}, {image.width} x {image.height}")
    if side > 4 * max(image.size):
        raise ValueError(f"the person's box, {side} pixels, is far larger than {path}; is `scale` of another unit?")
    crop = image.crop((left, top, left + side, top + side))
    return np.array(crop.resize((size, size), Image.Resampling.BILINEAR))
