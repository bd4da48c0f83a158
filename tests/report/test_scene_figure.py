"""Which detections a second network loses, and which it alone has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitsplit.report.scene_figure import _overlap, marked_changes


def found(category: int, *box: float) -> dict:
    return {"category_id": category, "bbox": list(box)}


def test_what_is_lost_and_what_is_new():
    before = [found(1, 0, 0, 10, 10), found(2, 20, 20, 10, 10), found(1, 50, 50, 10, 10)]
    after = [found(1, 1, 0, 10, 10), found(3, 20, 20, 10, 10), found(1, 56, 50, 10, 10), found(1, 0, 1, 10, 10)]
    changes = [(one["category_id"], one["bbox"][0], one["change"]) for one in marked_changes(before, after)]
    assert changes == [
        *((1, 1, ""), (3, 20, "new"), (1, 56, "new"), (1, 0, "new")),  # the last: a second box of the same thing
        *((2, 20, "lost"), (1, 50, "lost")),
    ]
    assert "change" not in before[0]


BOXES = st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(0.5, 50)] * 2)


@given(BOXES, BOXES)
def test_overlap_is_pycocotools(one, other):
    mask = pytest.importorskip("pycocotools.mask")
    expected = mask.iou(np.array([one]), np.array([other]), [0])[0, 0]
    assert abs(_overlap(list(one), list(other)) - expected) < 1e-9
