"""Images of characters, each a pure function of (split, index).

An image is one character of one of 100 classes, in one of 16 faces, with random size, rotation, shear and place,
textured paint on a textured ground, among clutter, partly covered, blurred and noisy. What is drawn on a canvas of a
given size (pixels, height and width) serves the scenes of `scene_drawing` too.
"""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

GLYPH_SIZE = 64  # pixels, height and width of an image
SPLITS = ("train", "val")

# One class a drawing: no two characters that differ only in size, or not at all, in some face, as c/C, p/P, 0/O, I/l/|,
# A/Alpha or ψ/Ψ do; and every face here has every character.
CLASSES = (
    *"0123456789",
    *"ABCDEFGHJKLMNPQRSTUVWXYZ",
    *"abdefghijkmnqrty",
    *"ΓΔΘΛΞΠΣΦΨΩ",
    *"αβγδεζηλμξπρστω",
    *"æ!?&@#$%*+=<>{[€£¥§¶©∂±÷~",
)

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)

_EM = 64  # pixels per em at which a character is rasterised before it is transformed
PAD = 2  # pixels of empty margin around the raster, so that resampling fades out at its border
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # The basic engine is the one in every build of Pillow; Raqm is optional and would make images depend on it.
    return ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyph(character: str, font: str) -> Image.Image:
    """Coverage of a character (mode L, 255 = ink) at 64 pixels per em, cropped to its ink plus a margin of 2 pixels."""
    left, top, right, bottom = _font(font).getbbox(character)
    mask = Image.new("L", (right - left + 2 * PAD, bottom - top + 2 * PAD))
    ImageDraw.Draw(mask).text((PAD - left, PAD - top), character, fill=255, font=_font(font))
    return mask


def generator(stream: int, split: str, number: int) -> np.random.Generator:
    """Random numbers of one thing drawn; `stream` keeps its kind apart from others. ValueError for an unknown split."""
    seeds = np.random.SeedSequence((SPLITS.index(split), number), spawn_key=(stream,))
    return np.random.Generator(np.random.PCG64(seeds))


@cache
def _labels(split: str, block: int) -> np.ndarray:
    return generator(0, split, block).permutation(len(CLASSES))


def label(split: str, index: int) -> int:
    """Class of an image; each run of 100 indices from a multiple of 100 holds every class once, in random order."""
    block, place = divmod(index, len(CLASSES))
    return int(_labels(split, block)[place])


def placed(rng: np.random.Generator, mask: Image.Image, scale: float, reach: float, size: int) -> np.ndarray:
    """Coverage (size,size) in [0,1] of `mask` scaled, rotated, sheared and moved by up to `reach` of its free room."""
    angle, shear = np.deg2rad(rng.uniform(-20, 20)), rng.uniform(-0.25, 0.25)
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = rotation @ np.array([[1, shear], [0, 1]]) @ np.diag([scale * stretch, scale / stretch])
    raster = np.array(mask.size)
    extent = np.abs(forward) @ raster
    centre = size / 2 + rng.uniform(-reach, reach, 2) * np.maximum(size - extent, 4) / 2
    backward = np.linalg.inv(forward)  # PIL asks for the map from the output to the input
    offset = raster / 2 - backward @ centre
    coefficients = (*backward[0], offset[0], *backward[1], offset[1])
    canvas = mask.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    return np.asarray(canvas, dtype=np.float32) / 255


def colour(rng: np.random.Generator, luminance: float) -> np.ndarray:
    """Random colour (3,) of the given luminance."""
    chroma = rng.uniform(-0.3, 0.3, 3).astype(np.float32)
    return luminance + chroma - chroma @ _LUMINANCE


def texture(rng: np.random.Generator, mean: np.ndarray, strength: float, size: int) -> np.ndarray:
    """Smooth random texture (size,size,3) around a mean colour; `strength` is its amplitude."""
    rows, columns = rng.integers(2, 17, 2)  # unequal counts give stripes
    coarse = Image.fromarray(rng.uniform(-strength, strength, (rows, columns)).astype(np.float32))
    fine = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    tint = rng.uniform(0.4, 1.0, 3).astype(np.float32)
    return mean + fine[..., None] * tint


def strokes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Coverage (size,size) in {0,1} of `count` lines and ellipses, 1 to 3 pixels thick."""
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    for _ in range(count):
        (x0, x1), (y0, y1) = np.sort(rng.uniform(-8, size + 8, (2, 2)), axis=1)
        width = int(rng.integers(1, 4))
        if rng.random() < 0.5:
            pen.line((x0, y0, x1, y1) if rng.random() < 0.5 else (x0, y1, x1, y0), fill=255, width=width)
        else:
            pen.ellipse((x0, y0, x1, y1), outline=255, width=width)
    return np.asarray(canvas, dtype=np.float32) / 255


def _clutter(rng: np.random.Generator) -> np.ndarray:
    """Coverage (64,64) in [0,1] of some lines, ellipses and a small stray character."""
    lines = strokes(rng, rng.integers(1, 4), GLYPH_SIZE)
    stray = glyph(CLASSES[rng.integers(len(CLASSES))], FONTS[rng.integers(len(FONTS))])
    stray = placed(rng, stray, rng.uniform(0.2, 0.35), reach=1.0, size=GLYPH_SIZE)
    return np.maximum(lines, stray)


def _cover(rng: np.random.Generator) -> np.ndarray:
    """Coverage (64,64) in {0,1} of one bar, 4 to 11 pixels wide, that passes near the centre."""
    canvas = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE))
    angle, (x, y) = rng.uniform(0, np.pi), GLYPH_SIZE / 2 + rng.uniform(-18, 18, 2)
    dx, dy = 2 * GLYPH_SIZE * np.cos(angle), 2 * GLYPH_SIZE * np.sin(angle)
    ImageDraw.Draw(canvas).line((x - dx, y - dy, x + dx, y + dy), fill=1, width=int(rng.integers(4, 12)))
    return np.asarray(canvas, dtype=np.float32)


def photographed(rng: np.random.Generator, image: np.ndarray, blur: float, noise: float) -> np.ndarray:
    """Image (H,W,3) uint8 of one in [0,1], at random blurred by up to `blur` pixels and noisy by up to `noise`."""
    pixels = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8))
    blurred = pixels.filter(ImageFilter.GaussianBlur(rng.uniform(0, blur)))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0, noise) * 255
    return (np.asarray(blurred) + grain).clip(0, 255).astype(np.uint8)


def draw_glyph(split: str, index: int) -> np.ndarray:
    """Image (64,64,3) uint8 of the character with class `label(split, index)`."""
    rng = generator(1, split, index)

    contrast = rng.uniform(0.32, 0.8)  # difference in luminance of ink and ground
    dark = rng.uniform(0, 1 - contrast)
    ground, ink = rng.permutation((dark, dark + contrast))
    between = ground + 0.5 * (ink - ground)  # clutter never stands out as much as the character

    background = texture(rng, colour(rng, ground), rng.uniform(0, 0.25), GLYPH_SIZE)
    foreground = texture(rng, colour(rng, ink), rng.uniform(0, 0.2), GLYPH_SIZE)
    clutter = _clutter(rng)[..., None]
    image = background + clutter * (colour(rng, between) - background)

    face = FONTS[rng.integers(len(FONTS))]
    character = glyph(CLASSES[label(split, index)], face)
    coverage = placed(rng, character, rng.uniform(31, 58) / _EM, reach=0.8, size=GLYPH_SIZE)[..., None]
    image = image + coverage * (foreground - image)

    if rng.random() < 0.6:
        cover = _cover(rng)[..., None]
        image = image + cover * (texture(rng, colour(rng, ground), 0.2, GLYPH_SIZE) - image)

    return photographed(rng, image, blur=1.3, noise=0.09)
