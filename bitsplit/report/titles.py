"""Names of networks and methods as people read them, and the order in which every table and figure shows them."""

from collections.abc import Iterable

FULL_IMAGENET, FULL_COCO = "imagenet", "coco"  # the only folders in which the paper's numbers stand beside ours
PAPER_SHOWN = (FULL_IMAGENET, "glyphs")  # folders whose tables name the paper's networks before they have run
PAPER_CLASSIFIERS = ("resnet18", "resnet50", "resnet101", "vgg16_bn")
DEPTHWISE_CLASSIFIERS = ("mobilenet_v3_small",)  # shown in a table of their own, in none of the paper's
PAPER_DETECTORS = ("retinanet", "mask_rcnn")
PAPER_METHODS = ("tflite", "tensorrt", "aciq", "aciq_mix", "lapq", "bitsplit", "bitsplit_per_channel")
PAPER_PAIR = ("tflite", "bitsplit")  # all that the sweeps over bit-widths and Table 5 compare

FLOATING_POINT = {"fp32": "floating point", "fp32_bn": "floating point, same batch-norm"}
METHOD_TITLES = FLOATING_POINT | {
    "tflite": "TF-Lite",
    "tensorrt": "TensorRT",
    "aciq": "ACIQ",
    "aciq_mix": "ACIQ-Mix",
    "lapq": "LAPQ",
    "bitsplit": "Bit-split",
    "bitsplit_per_channel": "Bit-split-per-channel",
    "gptq": "GPTQ",
    "bitsplit_ecaq": "Bit-split-ECAQ",
    "bitsplit_lattice": "Bit-split-lattice",
    "bitsplit_plus": "Bit-split-plus",
    "bitsplit_plus_midrise": "Bit-split-plus-midrise",
}
MODEL_TITLES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "vgg16_bn": "VGG-16-BN",
    "mobilenet_v3_small": "MobileNetV3-Small",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "efficientnet_lite1": "EfficientNet-Lite1",
    "efficientnet_lite2": "EfficientNet-Lite2",
    "retinanet": "RetinaNet",
    "mask_rcnn": "Mask R-CNN",
}
METRIC_TITLES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "agreement": "agreement %",
    "logits_snr_db": "SNR dB",
    **{f"bbox_ap{iou}": f"box AP{iou}" for iou in ("", 50, 75)},
    **{f"segm_ap{iou}": f"mask AP{iou}" for iou in ("", 50, 75)},
}
HEADLINES = ("top1", "bbox_ap", "segm_ap", "agreement")  # what one line says of a run


def method_title(name: str) -> str:
    """The title of a method; one that has none goes by its own name."""
    return METHOD_TITLES.get(name, name)


def model_title(name: str) -> str:
    """The title of a network; one that has none goes by its own name."""
    return MODEL_TITLES.get(name, name)


def in_order(names: Iterable[str], titles: Iterable[str]) -> list[str]:
    """Each name once: those of `titles` in its order, then the others by alphabet.

    >>> in_order(["mine", "vgg16_bn", "resnet18", "a_net", "mine"], MODEL_TITLES)
    ['resnet18', 'vgg16_bn', 'a_net', 'mine']
    """
    rank = {name: position for position, name in enumerate(titles)}
    return sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name))
