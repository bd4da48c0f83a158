"""Detectors of mmdet by name: configuration, weights with a checksum, and the layers that make predictions."""

import contextlib
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from bitsplit.errors import InputError
from bitsplit.networks.narrow_detectors import CONFIGS, narrow_detector
from bitsplit.networks.network import Network
from bitsplit.networks.weights import download, load_weights, shipped
from bitsplit.settings import Layers

if TYPE_CHECKING:
    from mmengine.config import Config

SCOPES = ("all", "backbone_neck")
GLYPHS_SIDE = 192
GLYPHS_CATEGORIES = 20
ZOO = {  # mmdet's configurations by network and backbone
    "retinanet": {"r50": CONFIGS["retinanet"], "r18": "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"},
    "mask_rcnn": {"r50": CONFIGS["mask_rcnn"], "r18": "mmdet::mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py"},
}
# Names of prediction layers in mmdet's heads, for configurations of the user's own.
_PREDICTIONS = (
    *("retina_cls", "retina_reg", "rpn_cls", "rpn_reg"),
    *("fc_cls", "fc_reg", "conv_logits", "conv_cls", "conv_reg"),
)


class DetectorModule(nn.Module):
    """An mmdet detector as a function of images (N, 3, H, W) alone, preprocessed and padded: what `quantize` calls.

    `detector` keeps mmdet's own interface for the evaluation.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> list:
        from mmdet.structures import DetDataSample

        size = tuple(images.shape[-2:])
        facts = {"img_shape": size, "ori_shape": size, "batch_input_shape": size, "scale_factor": (1.0, 1.0)}
        samples = [DetDataSample(metainfo=facts) for _ in images]
        # As in an evaluation, so that the mask head sees detections and not the many proposals.
        return self.detector.predict(images, samples, rescale=False)

    def bitsplit_graph(self, images: Tensor) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The part of the detector that is a graph of tensors, for other runtimes, and its inputs for these images."""
        graph = RawDetector(self.detector)
        return graph, (images, *graph.example_regions(images))


class RawDetector(nn.Module):
    """Backbone, neck and heads of an mmdet detector with their raw outputs, without the choice of boxes.

    forward(images) gives the class scores and box shifts of each level of the pyramid. A two-stage detector takes
    besides what RoI alignment has cut out of the levels for its second stage: features (regions, C, H, W) for the box
    head and, where it has masks, for the mask head. All numbers of regions are independent of each other.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(
        self, images: Tensor, box_features: Tensor | None = None, mask_features: Tensor | None = None
    ) -> dict[str, Tensor]:
        detector = self.detector
        first = detector.rpn_head if hasattr(detector, "rpn_head") else detector.bbox_head
        scores, shifts = first(detector.extract_feat(images))
        outputs = {f"scores_{level}": values for level, values in enumerate(scores)}
        outputs |= {f"shifts_{level}": values for level, values in enumerate(shifts)}
        if box_features is not None:
            outputs["box_scores"], outputs["box_shifts"] = detector.roi_head.bbox_head(box_features)
        if mask_features is not None:
            outputs["mask_logits"] = detector.roi_head.mask_head(mask_features)
        return outputs

    def example_regions(self, images: Tensor) -> list[Tensor]:
        """Features of the second stage in the right shapes; the numbers of images and of regions all differ."""
        roi_head = getattr(self.detector, "roi_head", None)
        extractors = [roi_head.bbox_roi_extractor] if roi_head else []
        extractors += [roi_head.mask_roi_extractor] if roi_head and roi_head.with_mask else []
        return [
            images.new_zeros(len(images) + more, extractor.out_channels, *extractor.roi_layers[0].output_size)
            for more, extractor in enumerate(extractors, 1)
        ]


@dataclass
class DetectorNetwork(Network):
    """A floating-point detector; `preprocessing` is mmdet's whole configuration, its data pipeline among it."""

    preprocessing: "Config" = field(repr=False)
    scope: str = "all"

    @property
    def identity(self) -> dict:
        text = self.preprocessing.dump()
        return super().identity | {"config": hashlib.sha256(text.encode()).hexdigest(), "scope": self.scope}

    @cached_property
    def module(self) -> DetectorModule:
        """The detector in eval mode; InputError where the file holds no intact weights of this architecture."""
        return DetectorModule(load_weights(self.name, self.build(), self.path))

    @cached_property
    def layers(self) -> Layers:
        """The prediction layers, and those outside the scope."""
        parts = dict(self.module.named_modules())
        predictions = tuple(name for name in parts if name.rpartition(".")[2] in _PREDICTIONS)
        heads = [name for name, _ in self.module.detector.named_children() if name.endswith("head")]
        left_alone = [f"detector.{name}" for name in heads] if self.scope == "backbone_neck" else []
        return Layers(predictions, tuple(left_alone))


@dataclass(frozen=True)
class Detector:
    """mmdet's network on a ResNet with feature pyramid: the model zoo's weights for COCO, the shipped reduced-width one
    for glyphs_coco.

    `backbone` is "r50", the default, or "r18"; glyphs_coco has a ResNet-18 alone. `weights` is a checkpoint to use
    instead, `config` a configuration file of mmdet's that it belongs to. `scope` "all" quantizes heads too,
    "backbone_neck" leaves them in floating point.
    """

    name: str
    backbone: str | None = None
    weights: str | None = None
    config: str | None = None
    scope: str = "all"

    task: ClassVar[str] = "detection"

    def __post_init__(self) -> None:
        if self.name not in ZOO:
            raise InputError(f"model.name must be one of {', '.join(ZOO)}; got {self.name!r}")
        if self.scope not in SCOPES:
            raise InputError(f"model.scope must be one of {', '.join(SCOPES)}; got {self.scope!r}")
        if self.backbone and self.backbone not in ZOO[self.name]:
            raise InputError(f"model.backbone must be one of {', '.join(ZOO[self.name])}; got {self.backbone!r}")
        if self.backbone and self.config:
            raise InputError("model.config=FILE names a backbone of its own; leave model.backbone out")

    def load(self, domain: str) -> DetectorNetwork:
        require_mmdet()
        if domain == "glyphs_coco" and not self.config:
            if self.backbone:
                raise InputError("glyphs_coco has reduced-width networks of its own; leave model.backbone out")
            config = narrow_detector(self.name, GLYPHS_CATEGORIES, GLYPHS_SIDE)
            path = Path(self.weights) if self.weights else shipped(f"{self.name}_glyphs.safetensors")
        else:
            config = self._configuration()
            path = Path(self.weights) if self.weights else self._zoo_weights(config)
        parts = [f"backbone={self.backbone}"] if self.backbone == "r18" else []
        parts += [f"scope={self.scope}"] if self.scope != "all" else []
        return DetectorNetwork(self.name, lambda: build(config), path, config, "-".join(parts), self.scope)

    def _zoo_weights(self, config: "Config") -> Path:
        """Local path of the model zoo's checkpoint, downloaded on first use."""
        if "model_path" not in config:
            raise InputError(f"mmdet's model zoo has no {self.name} on {self.backbone}; give model.weights=FILE")
        return download(config.model_path)

    def _configuration(self) -> "Config":
        from mmengine.config import Config
        from mmengine.hub import get_config

        if not self.config:
            return get_config(ZOO[self.name][self.backbone or "r50"], pretrained=True)
        if not Path(self.config).is_file():
            raise InputError(f"model.config={self.config} is not a file")
        if not self.weights:
            raise InputError("model.config=FILE needs model.weights=FILE, the checkpoint that belongs to it")
        try:
            config = Config.fromfile(self.config)
            _ = config.model, config.test_dataloader.dataset.pipeline
        except Exception as error:  # a configuration is a program: anything can happen in it
            raise InputError(f"model.config={self.config} is not a configuration of mmdet: {error}") from error
        return config


def require_mmdet() -> None:
    """InputError where the extra `detection` is not installed."""
    import bitsplit.vision  # noqa: F401  before mmdet imports torchvision, which may need its help

    try:
        with quiet():
            import mmcv.ops  # noqa: F401
            import mmdet.models  # noqa: F401
            import pycocotools.coco  # noqa: F401
    except ImportError as error:
        raise InputError(f"detection needs the extra `detection` ({error}): run `make setup-detection`") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without mmdet's and pycocotools' reports of their progress, and of optional packages that are not used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def build(config: "Config") -> nn.Module:
    """The detector of a configuration, with random weights."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    with quiet():
        register_all_modules(init_default_scope=True)
        return MODELS.build(config.model)
