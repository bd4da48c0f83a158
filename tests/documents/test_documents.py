"""What the documents, docstrings and comments point at is there: files, headings, functions."""

import ast
import io
import re
import tokenize
from importlib import import_module
from inspect import getsourcefile, unwrap
from itertools import chain
from pathlib import Path

import pytest
from conftest import ROOT
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

import bitsplit

# All that people write; what lies in results/<data>/ and results/bench/ is generated.
PLACES = ("*.md", "docs/*.md", "notebooks/*.md", "results/*.md", "results/paper/*.md")
DOCUMENTS = sorted(chain.from_iterable(ROOT.glob(place) for place in PLACES))
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
NAME = re.compile(r"`(?P<name>bitsplit(?:\.\w+)+)(?:\([^`]*)?`")
FOLDERS = "bitsplit|conf|docs|experiments|notebooks|results|tests"
FILE = re.compile(rf"`(?P<path>(?:{FOLDERS})/[\w/.-]+)`")
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))

SOURCES = [
    path
    for pattern in ("bitsplit/**/*.py", "experiments/*.py", "run.py", "conf/**/*.yaml", "Makefile")
    for path in sorted(ROOT.glob(pattern))
]
SUFFIX = r"\.(?:py|md|yaml|toml|lock|ipynb)"
# A file as a docstring names it: in backticks, or below one of the project's folders, or a Markdown file anywhere.
NAMED_FILE = re.compile(
    rf"`([\w/.-]*\w{SUFFIX})`|(?<![\w/.>-])((?:{FOLDERS})/[\w/.-]*\w(?:{SUFFIX}|\.(?:csv|json|txt)))\b|([\w/.-]*\w\.md)\b"
)
PLACEHOLDER = re.compile(r"/[A-Z]+\.(?!md)")
# A section, with what stands before it: a document, or a publication with its year.
SECTION = re.compile(r"(?P<where>\S*?)[`,]* +[Ss]ection +(?P<number>\d+)")


def prose(path: Path) -> str:
    """The document without its blocks of code, in which names may be examples."""
    return re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(name: str) -> object:
    """What a dotted name stands for; AttributeError where there is no such thing."""
    thing, parts = import_module("bitsplit"), name.split(".")[1:]
    for place, part in enumerate(parts, start=2):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            try:
                thing = import_module(".".join(name.split(".")[:place]))
            except ModuleNotFoundError as error:
                raise AttributeError(f"there is no {name}") from error
    return thing


def broken_links(path: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.finditer(text):
        target, _, anchor = link["target"].partition("#")
        if target.startswith(("http:", "https:")):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(prose(file))):
            broken.append(link["target"])
        elif (name := NAME.fullmatch(link["text"])) and Path(getsourcefile(unwrap(named(name["name"])))) != file:
            broken.append(f"{name['name']} is not in {target}")
    return broken


def comments(path: Path) -> str:
    """The docstrings and comments of a file, without line breaks."""
    text = path.read_text()
    if path.suffix != ".py":
        lines = re.findall(r"(?:^|\s)#+ ?(.*)", text)
    else:
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        lines = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
        with_docstring = (ast.Module, ast.ClassDef, ast.FunctionDef)
        lines += [
            ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, with_docstring)
        ]
    return " ".join(" ".join(lines).split())


def is_there(name: str, path: Path) -> bool:
    return any((folder / name).exists() for folder in (ROOT, ROOT / "bitsplit", path.parent))


def missing_in_comments(text: str, path: Path) -> list[str]:
    """Files, sections and dotted names that the comments of the file at `path` name and that are not there."""
    files = ["".join(groups) for groups in NAMED_FILE.findall(text)]
    missing = [name for name in files if not PLACEHOLDER.search(name) and not is_there(name, path)]
    for section in SECTION.finditer(text):
        where, heading = section["where"].strip("`(),"), rf"^## {section['number']}\. "
        if re.fullmatch(r"(19|20)\d\d", where):  # of a publication
            continue
        document = ROOT / where
        if document.suffix != ".md" or not document.exists() or not re.search(heading, prose(document), re.MULTILINE):
            missing.append(section[0])
    for name in NAME.finditer(text):
        try:
            named(name["name"])
        except AttributeError:
            missing.append(name["name"])
    return missing


@every_document
def test_links_lead_somewhere(path):
    assert broken_links(path, prose(path)) == []


@every_document
def test_functions_that_are_named_exist(path):
    for name in NAME.finditer(prose(path)):
        named(name["name"])


@every_document
def test_files_that_are_named_exist(path):
    missing = [file["path"] for file in FILE.finditer(prose(path)) if not (ROOT / file["path"]).exists()]
    assert missing == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_docstrings_and_comments_name_is_there(path):
    assert missing_in_comments(comments(path), path) == []


@pytest.mark.parametrize(
    "text",
    [
        "see METHODS, section 4",
        "see `docs/method.md`, section 40",
        "as docs/no_such.md says",
        "`solver/no_such.py` has the loops",
        "in experiments/no_such.py",
        "`bitsplit.solver.bitsplit.no_such_function`",
        "as section 3 says",
    ],
)
def test_what_is_missing_in_a_docstring_is_found(text):
    assert len(missing_in_comments(text, ROOT / "bitsplit/ptq.py")) == 1


def test_what_is_there_is_not_reported():
    text = "Wang et al., ICML 2020, section 3; `docs/method.md`, section 3; docs/method.md, section 4; `solver/gptq.py`"
    assert missing_in_comments(f"{text}; `objective.py`; `bitsplit.quantize`", ROOT / "bitsplit/solver/gptq.py") == []
    assert comments(ROOT / "bitsplit/solver/bitsplit.py").count("section 3") == 1


def test_no_document_is_left_out():
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    written = {
        path
        for folder in folders
        if folder.name not in ("build", "data", "results", "wandb")
        for path in folder.rglob("*.md")
    }
    assert written <= set(DOCUMENTS) and len(DOCUMENTS) >= 12


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 45


@every_document
def test_lines_are_short_and_say_images(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > 120 and "](" not in line] == []
    assert not re.search(r"\bpictures?\b", prose(path), re.IGNORECASE)


def test_equations_are_linked_to_their_functions():
    linked = {link["text"].strip("`") for link in LINK.finditer((ROOT / "docs/method.md").read_text())}
    steps = ("solver.bitsplit.split", "solver.bitsplit.stitch", "solver.bitsplit.bit_split", "solver.bitsplit.solve")
    loops = ("solver.compiled.descend_plane",)
    objective = ("solver.objective.objective", "solver.objective.optimal_scale")
    others = ("solver.lattice.lattice", "solver.gptq.k_best", "solver.gptq.gptq", "methods.gptq.GPTQ")
    scales = ("grid.Grid.scale_by_max", "methods.tensorrt.least_divergent", "methods.aciq.clipping_scale")
    order = ("ptq.quantize", "plan.Plan.of", "layers.batch_norm.reestimate_batch_norm")
    assert {f"bitsplit.{name}" for name in (*steps, *loops, *objective, *others, *scales, *order)} <= linked


def test_messages_under_troubleshooting_are_the_codes_own():
    text = prose(ROOT / "docs/troubleshooting.md")
    (section,) = re.findall(r"^## When something fails$(.*?)^#", text, re.DOTALL | re.MULTILINE)
    messages = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
    sources = [*(ROOT / "bitsplit").rglob("*.py"), Path(getsourcefile(ConfigLoaderImpl))]
    code = "".join(path.read_text() for path in sources)
    assert len(messages) == 12
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
    path, text = (
        ROOT / "README.md",
        "[a](nowhere.md) [b](README.md#no-such-heading) [`bitsplit.solver.bitsplit.solve`](run.py)",
    )
    assert broken_links(path, text) == [
        "nowhere.md",
        "README.md#no-such-heading",
        "bitsplit.solver.bitsplit.solve is not in run.py",
    ]
    with pytest.raises(AttributeError):
        named("bitsplit.solver.bitsplit.no_such_function")


@every_document
def test_rows_of_tables_have_as_many_cells_as_their_heads(path):
    """A bar inside a cell must be written \\|."""
    width = None
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert width is None or cells in (None, width), line
        width = cells
