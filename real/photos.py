"""Photos: one reader for training and for predict.py, so that a policy is asked about what it was trained on.

    photo -> RGB, white where transparent -> a square (a person's box, the whole, or the centre) -> size x size pixels
Cameras note in EXIF which way is up and do not turn the pixels. The boxes in data sets are of the pixels as they are
stored (HMR2 and others read with cv2.IMREAD_IGNORE_ORIENTATION), so a photo with a box is not turned; any other is.
(TIFF and HEIC are turned by their decoders, with or without a box.) What an iPhone stores, HEIC, needs a package that
is not asked for otherwise: pip install pillow-heif.
Read next: mixture.py, which makes examples of them.
"""

import math
import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 50_000_000  # of a photo; one larger than this would only fill the memory
LONGEST = 9_000  # pixels a side of a square: the whole of a panorama is far larger than its pixels, most of it black
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # pillow knows more: one, EPS, is a program to be run
HEIC = re.compile(rb".{4}ftyp(he|mif1|msf1)", re.DOTALL)  # how such a file begins
with suppress(ImportError):
    from pillow_heif import register_heif_opener
    register_heif_opener()
    FORMATS += ("HEIF",)

Box = tuple[float, float, float]  # a square: centre x, y and side, in pixels


def open_photo(path: str | Path, upright: bool = True) -> Image.Image:
    """A photo in RGB, turned as its EXIF says if `upright`; of 16 bits, which PNG may have, the upper 8. Raises
    ValueError, in one sentence, for a file that is missing, broken, no image, or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd notes beside the pixels, and sizes: see MAX_PIXELS
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise ValueError(f"{file.width} x {file.height} pixels are too many, make it smaller")
                if file.mode[0] in "IF" and file.format != "PNG":  # would be cut at 255; what is white in it?
                    raise ValueError("its grey has more than 8 bits, save it with 8")
                photo = ImageOps.exif_transpose(file) if upright else file
                if photo.mode[0] == "I":  # in colour, pillow itself takes the upper 8
                    photo = Image.fromarray((np.asarray(photo) >> 8).astype(np.uint8))
                if not photo.has_transparency_data:
                    return photo.convert("RGB")
                photo = photo.convert("RGBA")
    except Exception as error:  # the system, pillow and each of its formats raise their own
        raise ValueError(f"{path} cannot be used as an image: {error}{advice(path, error)}") from error
    return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")


def advice(path: str | Path, error: Exception) -> str:
    """What to do with a file of a format that is not read; nothing where something else is wrong."""
    if not isinstance(error, UnidentifiedImageError):
        return ""
    with open(path, "rb") as file:
        is_heic = HEIC.match(file.read(12))
    return "; HEIC is read after pip install pillow-heif" if is_heic else f"; what is read: {', '.join(FORMATS)}"


def cut_square(photo: Image.Image, box: Box, size: int) -> np.ndarray:
    """The box of a photo, black where it leaves the photo: uint8 (size, size, 3)."""
    x, y, side = box
    if side > LONGEST:
        times = math.ceil(side / LONGEST)
        photo, (x, y, side) = photo.reduce(times), (x / times, y / times, side / times)
    left, top, side = round(x - side / 2), round(y - side / 2), round(side)
    crop = photo.crop((left, top, left + side, top + side))
    return np.array(crop.resize((size, size), Image.Resampling.BILINEAR))


def whole(photo: Image.Image) -> Box:
    return photo.width / 2, photo.height / 2, max(photo.size)


def read_person(path: Path, box: Box | None, size: int, frame: tuple[int, int] | None = None) -> np.ndarray:
    """A photo of the training data: a person's box, or all of it with black beside. frame: width and height of the
    picture that the box is of. BEDLAM stores its upright ones lying on their left side. ValueError for a box that
    cannot be one of this photo."""
    photo = open_photo(path, upright=box is None)
    if frame and frame[0] < frame[1] and photo.size != frame:
        photo = photo.transpose(Image.Transpose.ROTATE_270)  # a quarter clockwise
    if box is not None:
        x, y, side = box
        if not (-side / 2 < x < photo.width + side / 2 and -side / 2 < y < photo.height + side / 2):
            raise ValueError(f"the person's box lies outside of {path}, {photo.width} x {photo.height}")
        if side > 4 * max(photo.size):
            raise ValueError(f"the person's box, {side:.0f} pixels, is far larger than {path}; is `scale` of another "
                             "unit?")
    return cut_square(photo, box or whole(photo), size)


def read_image(path: str | Path, size: int = 64) -> np.ndarray:
    """A user's photo as the policy reads it: upright, and all of it, as training reads one without a box."""
    photo = open_photo(path)
    if photo.width != photo.height:
        print(f"{path} is {photo.width} x {photo.height} pixels, read whole with black beside: of a square that is cut "
              "around the person the policy sees more.")
    return cut_square(photo, whole(photo), size)
