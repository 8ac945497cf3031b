"""Batched transforms of uint8 images, on the device."""

from ltbench.data.transforms import (  # a config may name any class of these without its module
    autoaugment,
    basic,
    colour,
    erasing,
    randaugment,
    resized_crop,
)

__all__ = ["autoaugment", "basic", "colour", "erasing", "randaugment", "resized_crop"]
