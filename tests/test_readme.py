"""The README's commands: the first two blocks are one line each, CI runs the second, and bundles know every option."""

import importlib.metadata
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for _, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python -m monai.bundle run")
]


def test_demo_and_tests_are_the_first_blocks_of_one_line_each():
    assert [(language, block.count("\n")) for language, block in BLOCKS[:2]] == [("bash", 1), ("bash", 1)]
    assert BLOCKS[0][1].rstrip().endswith("-m segcft_ext.chain demo")
    assert "-m pytest" in BLOCKS[1][1]
    assert all("-c constraints.txt" in block and block.startswith("python3 -m venv .venv") for _, block in BLOCKS[:2])


def test_ci_runs_the_line_of_the_readme(tmp_path):
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    found = next(line for line in script.splitlines() if line.startswith("line=$(awk"))
    said = subprocess.run(["bash", "-c", f'{found}; printf "%s\\n" "$line"'], cwd=ROOT, capture_output=True, check=True)
    assert said.stdout.decode() == BLOCKS[1][1]
    assert 'bash -c "$line"' in script


@pytest.mark.parametrize("command", COMMANDS)
def test_bundles_know_the_options_of_the_readme(command):
    words = shlex.split(command)[4:]
    options = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2]))
    config = ROOT / "bundles" / options.pop("config_file")
    assert (ROOT / "bundles" / options["bundle_root"]).is_dir()
    assert set(options) <= set(json.loads(config.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8"))
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = [heading.lower().replace(" ", "-") for heading in headings]
        if not target.exists() or (anchor and anchor not in anchors):
            broken.append(link)
    assert broken == []


def test_every_page_of_data_preparation_is_linked():
    linked = (ROOT / "docs" / "data_prep.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs" / "data_prep").glob("*.md")]
    assert pages and [page for page in pages if f"](data_prep/{page})" not in linked] == []


def test_constraints_pin_every_dependency():
    declared = importlib.metadata.requires("segcft-ext") or []
    needed = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in declared} - {"segcft-ext"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert needed and needed <= pinned
    assert "torch==2.13.0" in lines
