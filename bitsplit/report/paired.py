"""Two networks on the same images: difference, interval and p, of classifiers by McNemar's exact test image by image,
of detectors by the jackknife."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsplit.answers import right_answers
from bitsplit.errors import InputError
from bitsplit.report import record
from bitsplit.report.accuracy import jackknife_interval, jackknife_p, paired_interval
from bitsplit.report.titles import METRIC_TITLES, method_title, model_title


@dataclass(frozen=True)
class PairedDifference:
    """Top-1 of the first minus top-1 of the second network, in points; `interval` is half the width of its 95%
    interval, `first_only` and `second_only` are the images that one alone has right."""

    points: float
    interval: float
    first_only: int
    second_only: int

    @property
    def verdict(self) -> str:
        """Of the first, as `verdict` says it."""
        return verdict(self.points, self.interval, self.p)

    @property
    def p(self) -> float:
        """McNemar's exact test: how often two equally good networks are at least as far apart on the images that one
        alone has right."""
        from scipy.stats import binomtest  # takes longer to load than everything else here

        discordant = self.first_only + self.second_only
        return float(binomtest(self.first_only, discordant).pvalue) if discordant else 1.0


def verdict(points: float, interval: float, p: float = 0.0) -> str:
    """Above, below, or level where the difference lies inside its interval, or an exact test has p = 0.05 or more: of
    few images on which two networks differ, intervals are too narrow.

    >>> verdict(0.4, 0.5), verdict(-0.6, 0.5), verdict(0.8, 0.7, p=0.125)
    ('level', 'below', 'level')
    """
    if abs(points) <= interval or p >= 0.05:
        return "level"
    return "above" if points > 0 else "below"


def paired_difference(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    """first, second (images,): whether each network is right.

    With b images that the first alone has right and c that the second alone has right, of n, the difference is
    (b − c)/n.

    >>> paired_difference(np.array([True, True, False, True]), np.array([True, False, False, True])).points
    25.0
    """
    n, b, c = len(first), int(np.sum(first & ~second)), int(np.sum(~first & second))
    return PairedDifference(100 * (b - c) / n, paired_interval(first.astype(float) - second), b, c)


def answers_of(metrics: dict) -> np.ndarray | None:
    """Whether a network is right, by image, from its metrics in a record; None where they do not say."""
    return right_answers(metrics["correct"], metrics["images"]) if "correct" in metrics else None


def compare(first: Path, second: Path) -> str:
    """What `python -m bitsplit.report compare FIRST SECOND` prints of two records of the same images.

    Raises InputError for what is no record, does not say what `compare` needs, or was measured on other images.
    """
    runs = [_comparable(path) for path in (first, second)]
    _check_same_images(*runs)
    titles = [_title(run) for run in runs]
    if titles[0] == titles[1]:
        titles = [f"{title} ({path})" for title, path in zip(titles, (first, second), strict=True)]
    references = [f"{model_title(run['model'])} in floating point" for run in runs]
    if runs[0]["weights"]["sha256"] != runs[1]["weights"]["sha256"] and references[0] == references[1]:
        references = [
            f"{name}, weights {run['weights']['sha256'][:8]}" for name, run in zip(references, runs, strict=True)
        ]
    networks = {title: run["metrics"]["quantized"] for title, run in zip(titles, runs, strict=True)}
    networks |= {name: run["metrics"]["fp32"] for name, run in zip(references, runs, strict=True)}
    pairs = [tuple(titles), *zip(titles, references, strict=True)]
    compared = _accuracies if "correct" in networks[titles[0]] else _precisions
    return "\n".join([runs[0]["data"]["title"], *compared(networks, pairs)])


def _check_same_images(first: dict, second: dict) -> None:
    """InputError where two records are of other images, or of the same ones otherwise prepared."""
    calibrated_alike = all(first["config"][key] == second["config"][key] for key in ("seed", "calibration"))
    facts = []
    for run in (first, second):
        data = dict(run["config"]["data"])
        files = data.pop("files")  # of calibration and validation in one digest
        names = run["data"]["name"], run["data"]["title"]
        facts.append((data, names, files if calibrated_alike else None, run["metrics"]["quantized"]["skipped"]))
    if facts[0] != facts[1]:
        raise InputError(
            f"the records are of different images: {first['data']['title']}, and {second['data']['title']}"
            + (", of other files or otherwise prepared" if first["data"]["title"] == second["data"]["title"] else "")
        )


def _comparable(path: Path) -> dict:
    if not path.is_file() or (run := record.read(path)) is None:
        raise InputError(f"{path} is no record; give two files of results/<data>/runs")
    metrics = run["metrics"]["quantized"]
    if metrics.get("bbox_ap_without") == []:
        raise InputError(f"{path} is of fewer scenes than an interval needs")
    if not metrics.keys() & {"correct", "bbox_ap_without"}:
        raise InputError(f"{path} does not say which images were right: run its cell again with force=true")
    return run


def _accuracies(networks: dict[str, dict], pairs: list[tuple[str, str]]) -> Iterator[str]:
    images = {title: answers_of(metrics) for title, metrics in networks.items()}
    yield from (f"  {title}: top-1 {100 * right.mean():.2f}" for title, right in images.items())
    for one, other in pairs:
        difference = paired_difference(images[one], images[other])
        yield (
            f"{one} minus {other}: {difference.points:+.2f} ± {difference.interval:.2f} points, {difference.verdict} "
            f"(right alone {difference.first_only} and {difference.second_only}, p = {difference.p:.2g})"
        )


def _precisions(networks: dict[str, dict], pairs: list[tuple[str, str]]) -> Iterator[str]:
    kinds = [name for name in ("bbox_ap", "segm_ap") if all(name in metrics for metrics in networks.values())]
    for title, metrics in networks.items():
        yield f"  {title}: " + ", ".join(f"{METRIC_TITLES[kind]} {metrics[kind]:.2f}" for kind in kinds)
    for one, other in pairs:
        for kind in kinds:
            points = networks[one][kind] - networks[other][kind]
            without = np.subtract(*(networks[title][f"{kind}_without"] for title in (one, other)))
            half, p = jackknife_interval(without), jackknife_p(points, without)
            yield (
                f"{one} minus {other}, {METRIC_TITLES[kind]}: {points:+.2f} ± {half:.2f} points, "
                f"{verdict(points, half, p)} (p = {p:.2g})"
            )


def _title(run: dict) -> str:
    seed, variant = f" seed {run['seed']}" if run["seed"] else "", f" {run['variant']}" if run["variant"] else ""
    return f"{model_title(run['model'])} {method_title(run['method'])} W{run['wbits']}A{run['abits']}{seed}{variant}"
