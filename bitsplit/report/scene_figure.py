"""Figure: scenes with boxes and masks, one row a scene, one column a source of them."""

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Okabe and Ito's colours, one after another for the categories.
_CATEGORY_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_SCENE_INCHES = 2.4  # a scene's side
_SAME = 0.5  # intersection over union of two boxes of one thing
# What becomes of a detection: its line, and the sign before its name.
_LOOKS = {"": ("-", 1.5, ""), "lost": ((0, (1, 1.5)), 2, "−"), "new": ("-", 3.5, "+")}


def marked_changes(before: list[dict], after: list[dict]) -> list[dict]:
    """What a second network finds in a scene, each with `change`: "" for what the first one finds too, a box of the
    same category that overlaps it by half, else "new"; and what the first one alone finds, "lost".

    Annotations in COCO's format, their boxes as (x, y, width, height).
    """
    lost, found = list(before), []
    for one in after:
        same = [
            other
            for other in lost
            if other["category_id"] == one["category_id"] and _overlap(one["bbox"], other["bbox"]) >= _SAME
        ]
        found.append(one | {"change": "" if same else "new"})
        lost = [other for other in lost if other is not (same[0] if same else None)]
    return [*found, *(one | {"change": "lost"} for one in lost)]


def _overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union of two boxes."""
    sides = [min(a + c, b + d) - max(a, b) for a, b, c, d in zip(one[:2], other[:2], one[2:], other[2:], strict=True)]
    inside = max(sides[0], 0) * max(sides[1], 0)
    union = one[2] * one[3] + other[2] * other[3] - inside
    return inside / union if union else 0.0


def scene_figure(title: str, images: dict[int, np.ndarray], columns: dict[str, dict[int, list[dict]]], truth):
    """`columns` holds annotations by column title and image, in COCO's format or as `marked_changes` gives them: what
    is lost is dotted, with a minus before its name; what is new is thick, with a plus. `truth`, a pycocotools COCO,
    knows their categories and how to decode masks."""
    figure = Figure(figsize=(_SCENE_INCHES * len(columns), _SCENE_INCHES * len(images) + 0.8), layout="constrained")
    panels = figure.subplots(len(images), len(columns), squeeze=False)
    for row, (index, image) in zip(panels, images.items(), strict=True):
        for panel, annotations in zip(row, columns.values(), strict=True):
            _draw_scene(panel, image, annotations[index], truth)
    for panel, heading in zip(panels[0], columns, strict=True):
        panel.set_title(heading, fontsize=10)
    figure.suptitle(title)
    return figure


def _draw_scene(panel: Axes, image: np.ndarray, annotations: list[dict], truth) -> None:
    panel.imshow(image, interpolation="nearest")
    panel.autoscale(False)  # boxes may reach beyond the image
    for annotation in annotations:
        colour = _CATEGORY_COLOURS[annotation["category_id"] % len(_CATEGORY_COLOURS)]
        x, y, width, height = annotation["bbox"]
        line, thickness, sign = _LOOKS[annotation.get("change", "")]
        looks = {"edgecolor": colour, "linewidth": thickness, "linestyle": line}
        panel.add_patch(Rectangle((x, y), width, height, fill=False, **looks))
        name = sign + truth.cats[annotation["category_id"]]["name"]
        label = panel.text(x, y - 2, name, color=colour, fontsize=9, weight="bold")
        label.set_path_effects([effects.withStroke(linewidth=2, foreground="black")])
        if "segmentation" in annotation and annotation.get("change") != "lost":
            panel.contour(truth.annToMask(annotation), levels=[0.5], colors=[colour], linewidths=1)
    panel.set_axis_off()
