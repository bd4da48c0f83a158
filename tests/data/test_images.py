"""Image folders: class indices by WordNet id, damaged files, fixed random crops."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, environment
from PIL import Image

from bitsplit.data.folder import Folder
from bitsplit.data.imagenet import CLASS_INDEX, WNIDS, ImageNet
from bitsplit.data.images import ImageFiles, Preprocessing, image_paths
from bitsplit.errors import InputError
from bitsplit.vision import torchvision

PREPROCESSING = Preprocessing()


def test_class_index_is_the_rank_of_the_wordnet_id():
    assert len(WNIDS) == 1000 and sorted(WNIDS) == WNIDS
    # Well-known places of the 1,000 classes: tench, tabby cat, toilet tissue.
    assert (CLASS_INDEX["n01440764"], CLASS_INDEX["n02123045"], CLASS_INDEX["n15075141"]) == (0, 281, 999)


def test_images_outside_class_folders_are_counted(imagenet_root, tmp_path, capsys):
    shutil.copytree(imagenet_root, tmp_path / "root")
    first = min(path for path in (tmp_path / "root/val").iterdir())
    first.rename(first.with_name("goldfish"))
    left, all_images = len(list(first.with_name("goldfish").iterdir())), len(list((tmp_path / "root/val").glob("*/*")))
    assert ImageNet(str(tmp_path / "root")).title == f"ImageNet validation, {all_images - left:,} images"
    said = capsys.readouterr().err
    assert f"warning: {left} of {all_images} images in " in said and "goldfish is no WordNet id" in said


def test_a_subset_keeps_the_1000_class_indices(imagenet_root):
    data = ImageNet(str(imagenet_root))
    labels = torch.cat([labels for _, labels in data.validation(PREPROCESSING, 5)])
    assert sorted(set(labels.tolist())) == [0, 281, CLASS_INDEX["n13133613"]]
    assert (data.name, data.title) == ("imagenet_12", "ImageNet validation, 12 images")


def test_crops_are_fixed_by_the_seed_and_differ_between_seeds(imagenet_root):
    data = ImageNet(str(imagenet_root))

    def images(seed: int) -> torch.Tensor:
        return torch.cat([batch for batch, _ in data.calibration(PREPROCESSING, 8, 2, seed)])

    assert torch.equal(images(0), images(0))
    assert not torch.equal(images(0), images(1))
    single = ImageNet(str(imagenet_root))
    files = [single.calibration(PREPROCESSING, 24, 1, seed) for seed in (0, 1)]
    whole = [torch.cat([batch for batch, _ in batches]) for batches in files]
    # The same 24 images in another order; with crops of their own, sorted sums cannot agree.
    assert not torch.allclose(whole[0].sum((1, 2, 3)).sort()[0], whole[1].sum((1, 2, 3)).sort()[0])
    assert images(0).shape == (16, 3, 224, 224)


def test_damaged_files_are_named_counted_and_left_out(imagenet_root, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(imagenet_root, root)
    (root / "val" / "n01440764" / "0.jpg").write_bytes(b"")
    (root / "val" / "n01440764" / "1.jpg").write_text("no image")
    batches = ImageNet(str(root)).validation(PREPROCESSING, 2)
    for _ in range(2):
        assert sum(len(labels) for _, labels in batches) == 10
    assert len(batches.skipped) == 2
    assert capsys.readouterr().err.count("skipped") == 2


def test_prescaled_images_are_only_cropped(imagenet_root):
    (whole,) = (images for images, _ in ImageNet(str(imagenet_root), resize=None).validation(PREPROCESSING, 12))
    (shrunk,) = (images for images, _ in ImageNet(str(imagenet_root), resize=226).validation(PREPROCESSING, 12))
    assert whole.shape == shrunk.shape == (12, 3, 224, 224)
    assert not torch.allclose(whole, shrunk)


@pytest.mark.parametrize("data", [ImageNet(), ImageNet("no/such"), Folder(), Folder("no/such")])
def test_missing_roots_are_input_errors(data):
    with pytest.raises(InputError):
        data.title  # noqa: B018
        data.validation(PREPROCESSING, 1)


def test_flat_validation_folder_is_explained(tmp_path, imagenet_root):
    shutil.copytree(imagenet_root / "val" / "n01440764", tmp_path / "val")
    with pytest.raises(InputError, match="WordNet"):
        ImageNet(str(tmp_path)).title  # noqa: B018


def test_real_imagenet_images():
    if not (SHARED / "data" / "imagenet").is_dir():
        pytest.skip("no ImageNet images beside the project")
    data = ImageNet(str(SHARED / "data" / "imagenet"), resize=None)
    assert data.name == "imagenet_500"
    images, labels = next(iter(data.validation(PREPROCESSING, 50)))
    assert images.shape == (50, 3, 224, 224) and -3 < images.mean() < 3
    assert data.calibration(PREPROCESSING, 64, 200, 0).__len__() == 15


def test_workers_need_no_shared_memory(imagenet_root, tmp_path):
    """A container has 64 MB of it by default; here is next to none."""
    small = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "bash"]
    if not shutil.which("unshare") or subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("only root may mount another /dev/shm")
    code = f"""
from bitsplit.data.imagenet import ImageNet
from bitsplit.data.images import Preprocessing
print(sum(len(labels) for _, labels in ImageNet({str(imagenet_root)!r}).validation(Preprocessing(), 6)))
"""
    given = environment(BITSPLIT_CACHE=str(tmp_path))
    line = [*small, sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=given, timeout=100)
    assert (done.returncode, done.stdout) == (0, "12\n"), done.stderr


def test_linked_folders_are_followed_and_links_back_are_not(tmp_path):
    for wnid in ("n01440764", "n01443537"):
        (tmp_path / "all" / wnid).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (9, 9)).save(tmp_path / "all" / wnid / f"{index}.JPEG")
    validation = tmp_path / "subset" / "val"
    validation.mkdir(parents=True)
    (validation / "n01440764").symlink_to(tmp_path / "all" / "n01440764")
    (tmp_path / "all" / "n01443537").rename(validation / "n01443537")
    folders = torchvision.datasets.ImageFolder(str(validation))
    (validation / "n01443537" / "back").symlink_to(validation)  # with which torchvision's would not end
    assert [path.name for path in image_paths(validation)] == [Path(path).name for path, _ in folders.samples]
    assert ImageNet(str(tmp_path / "subset")).title == "ImageNet validation, 6 images"


def test_pixels_of_16_bits_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 900).reshape(30, 30)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "ramp.png")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "float.tiff")
    files = ImageFiles([tmp_path / "ramp.png", tmp_path / "float.tiff"], [0, 0], lambda image: image)
    assert np.abs(np.asarray(files[0]) - ramp[..., None] / 257).max() <= 1
    assert files[1] is None  # nobody knows which value is white
