"""What the image encoders of `tiny` are shown."""

import torch

from builtin.tiny_encoders import augment


def test_each_picture_is_its_own_shifted_by_at_most_three_pixels_either_way():
    """A shift in another dimension would give pictures the poses of others."""
    images = torch.randint(256, (64, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shown, shifts = augment(images, torch.Generator().manual_seed(1)), []
    for image, seen in zip(images, shown):
        shifts += [(y, x) for y in range(-3, 4) for x in range(-3, 4) if torch.equal(image.roll((y, x), (0, 1)), seen)]
    assert len(shifts) == 64 and len(set(shifts)) > 4
    assert all(len(set(shifts[i:i + 8])) == 1 for i in range(0, 64, 8))  # an eighth of the batch alike
