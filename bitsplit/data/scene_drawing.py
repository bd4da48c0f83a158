"""Scenes of several characters with the mask of each, every scene a pure function of (split, index).

A scene is 3 to 12 bold characters of 20 categories on a textured ground with some lines and ellipses, with random face,
size, rotation, shear, place, colour and texture, slightly blurred and noisy. Later characters cover earlier ones a
little.
"""

from dataclasses import dataclass

import numpy as np

from bitsplit.data.glyph_drawing import (
    CLASSES,
    FONTS,
    PAD,
    colour,
    generator,
    glyph,
    photographed,
    placed,
    strokes,
    texture,
)

SCENE_SIZE = 192  # pixels, height and width of a scene

# Far apart in shape in every face, so that finding a character and its outline is the task, not telling 8 from B.
CATEGORIES = tuple(character for character in CLASSES if character in "AHKLMSTWX346ΨΣΩΦ&€$+")
FACES = tuple(font for font in FONTS if "Bol" in font)  # bold: strokes of a few pixels, which a coarse mask can follow

COUNTS = (3, 12)  # characters in a scene
HEIGHTS = (22, 64)  # pixels, of a character before it is rotated and stretched
_CONTRAST = 0.35  # least difference in luminance of a character and the ground
_OVERLAP = 0.25  # most that two boxes share, as a part of the smaller one
_VISIBLE = 0.6  # least part of a character's ink that later ones leave uncovered

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Instance:
    """A character in a scene: index into CATEGORIES and visible ink, a boolean array (192,192)."""

    category: int
    mask: np.ndarray


def box(mask: np.ndarray) -> Box:
    """Tight box (x, y, width, height) in pixels of a boolean array (H,W) that is true somewhere."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def draw_scene(split: str, index: int) -> tuple[np.ndarray, list[Instance]]:
    """Scene (192,192,3) uint8 and its 3 to 12 instances, whose masks are disjoint. ValueError for an unknown split."""
    rng = generator(2, split, index)
    ground = rng.uniform(0, 1)
    image = texture(rng, colour(rng, ground), rng.uniform(0, 0.2), SCENE_SIZE)
    clutter = strokes(rng, rng.integers(2, 9), SCENE_SIZE)[..., None]
    between = ground + (0.2 if ground < 0.5 else -0.2)  # less contrast than any character has
    image = image + clutter * (colour(rng, between) - image)

    count = rng.integers(COUNTS[0], COUNTS[1] + 1)
    categories: list[int] = []
    inks: list[np.ndarray] = []  # whole
    masks: list[np.ndarray] = []  # what is left of them
    while len(masks) < count:  # ends, for the size is drawn anew each time and a small character finds room
        category = int(rng.integers(len(CATEGORIES)))
        coverage = _character(rng, category)
        ink = coverage > 0.5
        uncovered = [mask & ~ink for mask in masks]
        if not _fits(ink, inks, uncovered):
            continue
        paint = texture(rng, colour(rng, _luminance(rng, ground)), rng.uniform(0, 0.2), SCENE_SIZE)
        image = image + coverage[..., None] * (paint - image)
        categories, inks, masks = [*categories, category], [*inks, ink], [*uncovered, ink]

    instances = [Instance(category, mask) for category, mask in zip(categories, masks, strict=True)]
    return photographed(rng, image, blur=1.0, noise=0.06), instances


def _character(rng: np.random.Generator, category: int) -> np.ndarray:
    """Coverage (192,192) in [0,1] of a character of the category, wholly inside the scene."""
    mask = glyph(CATEGORIES[category], FACES[rng.integers(len(FACES))])
    height = np.exp(rng.uniform(*np.log(HEIGHTS)))  # as many between 22 and 32 as between 44 and 64
    return placed(rng, mask, height / (mask.height - 2 * PAD), reach=1.0, size=SCENE_SIZE)


def _fits(ink: np.ndarray, inks: list[np.ndarray], uncovered: list[np.ndarray]) -> bool:
    """Whether a character keeps enough distance from those before it and leaves enough of them uncovered."""
    apart = all(_shared(box(ink), box(other)) <= _OVERLAP for other in inks)
    return apart and all(left.sum() >= _VISIBLE * whole.sum() for left, whole in zip(uncovered, inks, strict=True))


def _shared(a: Box, b: Box) -> float:
    """Intersection of two boxes as a part of the smaller one."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


def _luminance(rng: np.random.Generator, ground: float) -> float:
    """Uniform among the luminances in [0,1] that differ enough from the ground's."""
    darker, lighter = max(ground - _CONTRAST, 0), max(1 - ground - _CONTRAST, 0)
    place = rng.uniform(0, darker + lighter)
    return place if place < darker else 1 - (place - darker)
