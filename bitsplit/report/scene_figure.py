"""Figure: scenes with boxes and masks, one row a scene, one column a source of them."""

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Okabe and Ito's colours, one after another for the categories.
_CATEGORY_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_SCENE_INCHES = 2.4  # a scene's side


def scene_figure(title: str, images: dict[int, np.ndarray], columns: dict[str, dict[int, list[dict]]], truth):
    """`columns` holds annotations by column title and image, in COCO's format; `truth`, a pycocotools COCO, knows
    their categories and how to decode masks."""
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
        panel.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1.5))
        name = truth.cats[annotation["category_id"]]["name"]
        label = panel.text(x, y - 2, name, color=colour, fontsize=9, weight="bold")
        label.set_path_effects([effects.withStroke(linewidth=2, foreground="black")])
        if "segmentation" in annotation:
            panel.contour(truth.annToMask(annotation), levels=[0.5], colors=[colour], linewidths=1)
    panel.set_axis_off()
