"""mmdet's RetinaNet and Mask R-CNN at a quarter of their width on ResNet-18, for the embedded scenes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmengine.config import Config

CHANNELS = 64  # of the pyramid and the heads, 256 in the full networks
_BACKBONE = {
    "backbone.depth": 18,
    "backbone.base_channels": 16,
    "backbone.frozen_stages": -1,
    "backbone.norm_eval": False,
    "backbone.init_cfg": None,
    "neck.in_channels": [16, 32, 64, 128],
    "neck.out_channels": CHANNELS,
}
_HEADS = {
    "retinanet": {
        "bbox_head.in_channels": CHANNELS,
        "bbox_head.feat_channels": CHANNELS,
        "bbox_head.anchor_generator.octave_base_scale": 3,  # from 24 pixels on: characters have 20 to 70
    },
    "mask_rcnn": {
        "rpn_head.in_channels": CHANNELS,
        "rpn_head.feat_channels": CHANNELS,
        "rpn_head.anchor_generator.scales": [6],
        "roi_head.bbox_roi_extractor.out_channels": CHANNELS,
        "roi_head.bbox_head.in_channels": CHANNELS,
        "roi_head.bbox_head.fc_out_channels": 256,
        "roi_head.mask_roi_extractor.out_channels": CHANNELS,
        "roi_head.mask_head.in_channels": CHANNELS,
        "roi_head.mask_head.conv_out_channels": CHANNELS // 2,
        # A scene holds 12 characters at most, COCO's images many more.
        "train_cfg.rpn_proposal.max_per_img": 200,
        "train_cfg.rcnn.sampler.num": 32,
        "train_cfg.rpn_proposal.nms_pre": 300,
        "test_cfg.rpn.max_per_img": 100,
        "test_cfg.rpn.nms_pre": 300,
    },
}
_CLASSES = {
    "retinanet": ["bbox_head.num_classes"],
    "mask_rcnn": ["roi_head.bbox_head.num_classes", "roi_head.mask_head.num_classes"],
}
# Of the full networks, on ResNet-50.
CONFIGS = {
    "retinanet": "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    "mask_rcnn": "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
}


def narrow_detector(name: str, classes: int, side: int) -> "Config":
    """mmdet's configuration of the reduced-width network `name` for images of `side` × `side` pixels."""
    from mmengine.hub import get_config

    config = get_config(CONFIGS[name])
    changes = _BACKBONE | _HEADS[name] | dict.fromkeys(_CLASSES[name], classes)
    config.merge_from_dict({f"model.{key}": value for key, value in changes.items()})
    for loader in (config.train_dataloader, config.test_dataloader):
        for step in loader.dataset.pipeline:
            if step.type == "Resize":
                step.scale = (side, side)
    return config
