"""Links, API pages, installations and metadata of the documentation are right; the site builds without a warning."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and mkdocs make of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/api/*.md")), ids=lambda page: page.stem)
def test_every_name_on_an_api_page_exists(page):
    names = re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    assert names
    for name in names:
        module, _, attribute = name.rpartition(".")
        if not hasattr(importlib.import_module(module), attribute):
            importlib.import_module(name)


def test_advised_installations_name_extras_that_exist_and_no_package_that_does_not():
    files = [*PAGES, *ROOT.glob("*.py"), *ROOT.glob("vdt_jax/**/*.py"), *ROOT.glob("study/*.py"), ROOT / "Makefile"]
    found = set()
    for file in files:
        text = file.read_text()
        assert not re.search(r"pip install '?vdt_jax", text), file
        for extras in re.findall(r"'\.\[([\w,]+)\]'", text):
            found |= set(extras.split(","))
    assert {"gpu", "gcs", "docs"} <= found
    assert found <= set(PROJECT["optional-dependencies"])


def test_citation_workflows_and_issue_templates():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"] == [{"name": "vdt_jax contributors"}]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in ROOT.glob(".github/workflows/*.yml"):
        jobs = yaml.safe_load(file.read_text())["jobs"]
        commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
        assert commands
        assert {command.split()[1] for command in commands} <= targets
    for file in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"):
        assert yaml.safe_load(file.read_text())


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    page = (tmp_path / "api" / "pipeline.html").read_text()
    assert "raise_frame_rate" in page and "the frames that follow" in page
    keys = (tmp_path / "api" / "training.html").read_text()  # of the classes of options, with choices and limits
    assert "Distribution of the masks. One of <code>varied</code>, <code>official</code>" in keys
