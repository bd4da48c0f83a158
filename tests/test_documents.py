"""What the documents point at is there: files, headings, and the functions they name."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

import bitsplit

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "notebooks/README.md"]
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
NAME = re.compile(r"`(?P<name>bitsplit(?:\.\w+)+)(?:\([^`]*)?`")
FILE = re.compile(r"`(?P<path>(?:bitsplit|conf|docs|experiments|notebooks|results|tests)/[\w/.-]+)`")
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path: Path) -> str:
    """The document without its blocks of code, in which names may be examples."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(name: str) -> object:
    """What a dotted name stands for; AttributeError where there is no such thing."""
    found, parts = import_module("bitsplit"), name.split(".")[1:]
    for place, part in enumerate(parts, start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = import_module(".".join(name.split(".")[:place]))
            except ModuleNotFoundError as error:
                raise AttributeError(f"there is no {name}") from error
    return found


def broken_links(path: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.finditer(text):
        target, _, anchor = link["target"].partition("#")
        if target.startswith(("http:", "https:")):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(prose(file))):
            broken.append(link["target"])
        elif (name := NAME.fullmatch(link["text"])) and Path(
            inspect.getsourcefile(inspect.unwrap(named(name["name"])))
        ) != file:
            broken.append(f"{name['name']} is not in {target}")
    return broken


@every_document
def test_links_lead_somewhere(path):
    assert broken_links(path, prose(path)) == []


@every_document
def test_functions_that_are_named_exist(path):
    for name in NAME.finditer(prose(path)):
        named(name["name"])


@every_document
def test_files_that_are_named_exist(path):
    missing = [found["path"] for found in FILE.finditer(prose(path)) if not (ROOT / found["path"]).exists()]
    assert missing == []


def test_equations_are_linked_to_their_functions():
    linked = {link["text"].strip("`") for link in LINK.finditer((ROOT / "docs/method.md").read_text())}
    assert {f"bitsplit.solver.{step}" for step in ("split", "stitch", "descend_planes", "solve")} <= linked
    assert {"bitsplit.objective.objective", "bitsplit.objective.optimal_scale", "bitsplit.lattice.k_best"} <= linked


def test_messages_under_troubleshooting_are_the_codes_own():
    (section,) = re.findall(r"^## When something fails$(.*?)^#", prose(ROOT / "README.md"), re.DOTALL | re.MULTILINE)
    messages = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
    sources = [*(ROOT / "bitsplit").rglob("*.py"), Path(inspect.getsourcefile(ConfigLoaderImpl))]
    code = "".join(path.read_text() for path in sources)
    assert len(messages) == 10
    assert [message for message in messages if message not in code] == []


def test_the_citation_is_that_of_the_paper():
    citation = OmegaConf.load(ROOT / "CITATION.cff")
    paper = citation["preferred-citation"]
    assert citation.title == "bitsplit" and citation.version == bitsplit.__version__
    readme = (ROOT / "README.md").read_text()
    assert f"title     = {{{paper.title}}}" in readme
    assert " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper.authors) in readme
    assert f"pages     = {{{paper.start}--{paper.end}}}" in readme and f"{{{paper.volume}}}" in readme


def test_broken_links_and_names_are_found():
    path, text = ROOT / "README.md", "[a](nowhere.md) [b](README.md#no-such-heading) [`bitsplit.solver.solve`](run.py)"
    assert broken_links(path, text) == [
        "nowhere.md",
        "README.md#no-such-heading",
        "bitsplit.solver.solve is not in run.py",
    ]
    with pytest.raises(AttributeError):
        named("bitsplit.solver.no_such_function")
