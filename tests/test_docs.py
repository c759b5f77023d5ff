"""The pages of docs/ that are made from the code are up to date, and links in the documentation lead somewhere."""

import re
import runpy

import pytest


@pytest.mark.parametrize("name", ["config.md", "cli.md", "dataset_list.md", "files.md"])
def test_page_is_up_to_date(root, name):
    page = runpy.run_path(str(root / "docs" / "make_pages.py"))["PAGES"][name]()
    assert (root / "docs" / name).read_text(encoding="utf-8") == page, "run make docs"


def test_links_lead_to_files(root):
    pages = [root / name for name in ("README.md", "CONTRIBUTING.md", "tests/data/README.md")]
    for page in [*pages, *(root / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_readme_enters_the_folder_that_it_clones(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert re.search(r"git clone .* (\S+)\n\s+cd (\S+)\n", readme).group(1, 2) == ("hierarchical-vae",) * 2
