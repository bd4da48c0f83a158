"""What a report is made from: the records in results/, and the paper's numbers only beside the paper's data."""

import shutil

import pandas
import pytest
from conftest import ROOT, SHARED
from records import PLACE, RECORD_FILES, make_run, write_runs

from bitsplit.errors import InputError
from bitsplit.networks.classifiers import PAPER_NETWORKS
from bitsplit.networks.detectors import ZOO
from bitsplit.report import record, titles
from bitsplit.report.records import read_records


@pytest.mark.parametrize("path", RECORD_FILES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_committed_records_fit_the_schema_and_their_names(path):
    run = record.read(path)
    assert run is not None
    assert path == record.run_path(ROOT / "results", run["data"]["name"], *(run[key] for key in PLACE))
    assert record.config_hash(run["config"]) == run["config_hash"]
    assert not run["commit"].endswith("-dirty") and run["commit"] != "unknown"


def test_paper_numbers_are_the_transcribed_ones():
    if not (SHARED / "paper").is_dir():
        pytest.skip("the transcription of the paper's tables is not beside the project")
    for path in (SHARED / "paper").glob("*.csv"):
        assert (ROOT / "results" / "paper" / path.name).read_text() == path.read_text()


def test_the_papers_networks_and_methods_are_those_of_its_table():
    published = pandas.read_csv(ROOT / "results" / "paper" / "imagenet_table4.csv")
    assert tuple(published["model"].unique()) == titles.PAPER_CLASSIFIERS
    assert set(published["method"]) == {"fp32", *titles.PAPER_METHODS}
    # Floating point is the same in both files, so that one of them is enough.
    sweep = pandas.read_csv(ROOT / "results" / "paper" / "imagenet_bitwidth_sweep.csv")
    both = (frame[frame["method"] == "fp32"].set_index("model")["top1"] for frame in (published, sweep))
    pandas.testing.assert_series_equal(*both)
    assert set(sweep["method"]) == {"fp32", *titles.PAPER_PAIR}
    detection = pandas.read_csv(ROOT / "results" / "paper" / "coco_table5.csv")
    assert set(detection["model"]) == set(titles.PAPER_DETECTORS) == set(ZOO)
    assert titles.PAPER_CLASSIFIERS == PAPER_NETWORKS
    assert set(detection["method"]) <= {"fp32", *titles.PAPER_PAIR}


@pytest.mark.parametrize(
    ("group", "key", "value", "what"),
    [
        ("weights", "sha256", "0" * 64, "weights"),
        ("data", "title", "ImageNet validation, 499 images", "images or preprocessing"),
    ],
)
def test_records_of_one_network_are_of_the_same_weights_and_images(tmp_path, group, key, value, what):
    runs = [make_run(wbits=wbits) for wbits in (3, 4)]
    write_runs(tmp_path, *runs)
    assert len(read_records(tmp_path, "glyphs").runs) == 2
    runs[1][group][key] = value
    write_runs(tmp_path, *runs)
    with pytest.raises(InputError, match=f"has records of resnet18 with different {what}"):
        read_records(tmp_path, "glyphs")


def test_only_the_folder_of_all_of_imagenet_reads_the_papers_numbers(tmp_path):
    shutil.copytree(ROOT / "results" / "paper", tmp_path / "paper")
    paper = {name: read_records(tmp_path, name).paper for name in ("imagenet", "imagenet_500", "glyphs")}
    assert paper["imagenet"] is not None and paper["imagenet_500"] is None and paper["glyphs"] is None
    shutil.rmtree(tmp_path / "paper")
    assert read_records(tmp_path, "imagenet").paper is None


def test_a_broken_record_counts_as_absent(tmp_path):
    write_runs(tmp_path, make_run())
    (tmp_path / "glyphs" / "runs" / "half.json").write_text('{"model": "resnet18"')
    assert len(read_records(tmp_path, "glyphs").runs) == 1


def test_records_are_in_one_order_whatever_their_files(tmp_path):
    runs = [make_run(m, k, w, w) for m in ("resnet101", "resnet18") for k in ("bitsplit", "tflite") for w in (3, 8)]
    write_runs(tmp_path, *runs)
    order = [(run["model"], run["wbits"], run["method"]) for run in read_records(tmp_path, "glyphs").runs]
    assert order == [(m, w, k) for m in ("resnet18", "resnet101") for w in (8, 3) for k in ("tflite", "bitsplit")]


def test_gptq_has_its_title_and_its_place_behind_the_papers_methods():
    methods = ["bitsplit_lattice", "gptq", "bitsplit_per_channel", "mine"]
    ordered = titles.in_order(methods, titles.METHOD_TITLES)
    assert ordered == ["bitsplit_per_channel", "gptq", "bitsplit_lattice", "mine"]
    assert titles.method_title("gptq") == "GPTQ"
