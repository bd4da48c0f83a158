"""Figure: scenes with boxes and masks, one row a scene, one column a source of them."""

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Okabe and Ito's colours, one after another for the categories.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_INCHES = 2.4  # a scene's side


def scene_figure(title: str, pictures: dict[int, np.ndarray], columns: dict[str, dict[int, list[dict]]], truth):
    """`columns` holds annotations by column title and picture, in COCO's format; `truth`, a pycocotools COCO, knows
    their categories and how to decode masks."""
    figure = Figure(figsize=(_INCHES * len(columns), _INCHES * len(pictures) + 0.8), layout="constrained")
    panels = figure.subplots(len(pictures), len(columns), squeeze=False)
    for row, (index, picture) in zip(panels, pictures.items(), strict=True):
        for panel, annotations in zip(row, columns.values(), strict=True):
            _draw(panel, picture, annotations[index], truth)
    for panel, heading in zip(panels[0], columns, strict=True):
        panel.set_title(heading, fontsize=10)
    figure.suptitle(title)
    return figure


def _draw(panel: Axes, picture: np.ndarray, annotations: list[dict], truth) -> None:
    panel.imshow(picture, interpolation="nearest")
    panel.autoscale(False)  # boxes may reach beyond the picture
    for one in annotations:
        colour = _COLOURS[one["category_id"] % len(_COLOURS)]
        x, y, width, height = one["bbox"]
        panel.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1.5))
        name = truth.cats[one["category_id"]]["name"]
        label = panel.text(x, y - 2, name, color=colour, fontsize=9, weight="bold")
        label.set_path_effects([effects.withStroke(linewidth=2, foreground="black")])
        if "segmentation" in one:
            panel.contour(truth.annToMask(one), levels=[0.5], colors=[colour], linewidths=1)
    panel.set_axis_off()
