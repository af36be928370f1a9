"""Made-up pictures with the statistics of photographs: leaves that fell on one another.

Objects of all sizes that hide each other give the 1/f spectrum, the edges and the heavy tails of
natural images (Lee, Mumford and Huang, "Occlusion models for natural images", 2001); noise, which
has none of these, leaves most features of a network without anything to respond to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LEAVES = 200
SMALLEST, LARGEST = 0.02, 0.5  # radius of a leaf, of the shorter side
BRIGHTNESS, CONTRAST = 0.45, 0.22  # mean and deviation of the leaves' colours, which end at 0 and 1
ELONGATION = 0.5  # deviation of log(length / width) / 2
SHADING, TEXTURE = 0.08, 0.12  # of one leaf: slope over a radius, amplitude
# Colours of photographs vary along brightness, then blue to yellow, then green to magenta.
COLOURS = np.array([[1.0, 0.18, 0.04], [1.0, 0.0, -0.08], [1.0, -0.18, 0.04]])


def dead_leaves(rng: np.random.Generator, channels: int, height: int, width: int) -> Array:
    """One picture: float32 [channels, height, width] in 0..1, RGB if ``channels`` is 3."""
    texture = fractal_noise(rng, 2 * height, 2 * width)
    image = np.empty((channels, height, width))
    image[:] = _colour(rng, channels)
    few, many = LARGEST**-2, SMALLEST**-2  # the number of leaves above a radius r falls as r**-2
    radii = min(height, width) * (few + (many - few) * rng.random(LEAVES)) ** -0.5
    for radius in np.sort(radii)[::-1]:
        _drop(rng, image, texture, float(radius))
    return np.clip(image, 0, 1).astype(np.float32)


def fractal_noise(rng: np.random.Generator, height: int, width: int, slope: float = 1.2) -> Array:
    """[height, width] of mean 0 and deviation 1, with amplitudes that fall as 1 / f**slope."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    real, imaginary = rng.standard_normal((2, *frequency.shape))
    noise = np.fft.irfft2((real + 1j * imaginary) / frequency**slope, (height, width))
    return np.asarray(noise / (noise.std() or 1.0))


def _colour(rng: np.random.Generator, channels: int) -> Array:
    """[channels, 1, 1]."""
    colour = COLOURS @ rng.standard_normal(3) * CONTRAST
    if channels != 3:
        colour = np.full(channels, colour.mean())
    return np.asarray(BRIGHTNESS + colour)[:, None, None]


def _drop(rng: np.random.Generator, image: Array, texture: Array, radius: float) -> None:
    """Draws one ellipse, rectangle or rhombus of any direction over what is there."""
    height, width = image.shape[1:]
    y, x = rng.random(2) * (height, width)
    angle, stretch = rng.random() * np.pi, float(np.exp(ELONGATION * rng.standard_normal()))
    shape, tone, slope = rng.integers(3), rng.random() * TEXTURE, rng.standard_normal(2) * SHADING
    colour, corner = _colour(rng, len(image)), rng.integers(0, (height, width))
    reach = 1.3 * radius * max(stretch, 1 / stretch)
    top, left = max(0, int(y - reach)), max(0, int(x - reach))
    bottom, right = min(height, int(y + reach) + 1), min(width, int(x + reach) + 1)
    down, along = np.arange(top, bottom)[:, None] - y, np.arange(left, right) - x
    u = (along * np.cos(angle) + down * np.sin(angle)) / (radius * stretch)
    v = (down * np.cos(angle) - along * np.sin(angle)) / (radius / stretch)
    inside = (u * u + v * v < 1, np.maximum(abs(u), abs(v)) < 0.9, abs(u) + abs(v) < 1.2)[shape]
    grain = texture[corner[0] :, corner[1] :][: bottom - top, : right - left]
    shade = colour + u * slope[0] + v * slope[1] + tone * grain
    region = image[:, top:bottom, left:right]
    image[:, top:bottom, left:right] = np.where(inside, shade, region)
