"""Which images a network has right, as text in a record, so that two networks are compared image by image."""

import base64

import numpy as np


def packed_answers(right: np.ndarray) -> str:
    """right (images,), whether the network's class is the label, as one bit an image in base64.

    >>> packed_answers(np.array([True, False, True]))
    'oA=='
    """
    return base64.b64encode(np.packbits(right)).decode()


def right_answers(packed: str, images: int) -> np.ndarray:
    """What `packed_answers` was given.

    >>> right_answers("oA==", 3).tolist()
    [True, False, True]
    """
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8), count=images).astype(bool)
