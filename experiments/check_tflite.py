"""Quantizes one network with LiteRT's own tools and with method `tflite`, and compares codes, scales and predictions.

Command:  pip install -e '.[tflite]', then python experiments/check_tflite.py
Data:     glyphs, embedded; the shipped ResNet-18 at 8 bits, batch-norm folded for both
Expected: a minute; weight codes and scales equal, top-1 alike on about 99 images of 100

LiteRT quantizes the image, sums and outputs as well, and takes a moving average of the batches' extremes for the range
of an activation, where `tflite` takes the greatest value of all.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas
import torch
from script import in_one_line, parser_of, use_one_thread
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import bitsplit
from bitsplit.data.glyphs import Glyphs
from bitsplit.networks.classifiers import PaperNetwork

BATCH = 50


def litert_file(network: nn.Module, batches: list[Tensor], path: Path) -> None:
    """Writes the network as LiteRT's own tools quantize it, weights and activations at 8 bits."""
    import litert_torch
    from ai_edge_quantizer import qtyping, quantizer, recipe

    litert_torch.convert(network, (batches[0],)).export(str(path))
    tool = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(".*", end, algorithm_key="no_quantize")  # images and logits come as they are
    samples = {"serving_default": [{"args_0": batch.numpy()} for batch in batches]}
    calibration = tool.calibrate(samples, num_threads=1)
    path.unlink()
    tool.quantize(calibration, serialize_to_path=str(path), enable_progress_bar=False, enable_progress_report=False)


def interpreter(path: Path):
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(str(path), num_threads=1)
    made.allocate_tensors()
    return made


def predictions(made, batches: list[Tensor]) -> Tensor:
    """Logits of the file in LiteRT's interpreter."""
    run, logits = made.get_signature_runner(), []
    for batch in batches:
        (output,) = run(args_0=batch.numpy()).values()
        logits.append(torch.tensor(output))
    return torch.cat(logits)


def weights_of(made) -> list[tuple[np.ndarray, np.ndarray]]:
    """Codes and scales of every weight in the file."""
    found = []
    for tensor in made.get_tensor_details():
        scales = tensor["quantization_parameters"]["scales"]
        if tensor["dtype"] is np.int8 and len(tensor["shape"]) > 1 and len(scales) == tensor["shape"][0]:
            found.append((made.get_tensor(tensor["index"]), scales))
    return found


def compare_weights(qmodel: nn.Module, theirs: list[tuple[np.ndarray, np.ndarray]]) -> pandas.DataFrame:
    """One row a layer, against that of LiteRT's weights of the same shape that has the most codes in common."""
    rows = []
    for name in qmodel.report.name:
        layer = qmodel.get_submodule(name)
        codes = (layer.codes.permute(0, 2, 3, 1) if layer.codes.dim() == 4 else layer.codes).numpy()
        codes_there, scales = max(
            (pair for pair in theirs if pair[0].shape == codes.shape), key=lambda pair: (pair[0] == codes).mean()
        )
        rows.append(
            {
                "layer": name,
                "weights": codes.size,
                "equal": (codes_there == codes).sum(),
                "greatest difference": np.abs(codes_there.astype(int) - codes).max(),
                "scales, relative": np.abs(scales / layer.scale.numpy() - 1).max(),
            }
        )
    return pandas.DataFrame(rows)


def agreement(one: Tensor, other: Tensor) -> str:
    return f"{100 * (one.argmax(1) == other.argmax(1)).double().mean().item():.2f}%"


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--images", type=int, default=1000, help=f"of validation, in batches of {BATCH} (default: 1000)"
    )
    parser.add_argument("--calibration", type=int, default=500, help="images for both (default: 500)")
    arguments = parser.parse_args()
    if find_spec("litert_torch") is None:
        sys.exit("LiteRT's tools are missing: pip install 'bitsplit[tflite]'")
    use_one_thread()
    loaded = PaperNetwork("resnet18").load("glyphs")
    network, preprocessing = fuse(loaded.module), loaded.preprocessing
    calibration = [
        images for images, _ in Glyphs().calibration(preprocessing, BATCH, arguments.calibration // BATCH, 0)
    ]
    validation = [images for images, _ in Glyphs(arguments.images // BATCH * BATCH).validation(preprocessing, BATCH)]
    qmodel = bitsplit.quantize(network, calibration, wbits=8, abits=8, method="tflite")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "litert.tflite"
        litert_file(network, calibration, path)
        made = interpreter(path)
        table, theirs = compare_weights(qmodel, weights_of(made)), predictions(made, validation)
    with torch.inference_mode():
        floating, ours = (torch.cat([module(images) for images in validation]) for module in (network, qmodel))
    print(table.to_markdown(index=False))
    print(
        f"\nEqual weight codes: {100 * table.equal.sum() / table.weights.sum():.4f}%, the others off by at most "
        f"{table['greatest difference'].max()}; scales equal to {table['scales, relative'].max():.1e}.\n"
        f"Top-1 on {len(theirs)} validation glyphs: ours and LiteRT's agree in {agreement(ours, theirs)}; with the "
        f"floating-point network agree ours in {agreement(ours, floating)}, LiteRT's in {agreement(theirs, floating)}."
    )


if __name__ == "__main__":
    sys.exit(main())
