"""The commands of README and docs: the first two blocks are one line, CI runs the second, and options are known."""

import ast
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import data_prep.__main__
from segcft_ext import chain, report
from segcft_ext.command_line import check_options

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "pretrained" / "README.md"]
PAGES += sorted(ROOT.glob("bundles/*/docs/README.md"))
COMMANDS = [
    (page.parent.parent if "bundles" in page.parts else ROOT, line)
    for page in PAGES
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python -m ")
]
DATA_PREP = ("folder", "inspect", "padchest", "ccta", "phantom", "regions")
PROGRAMS = {
    "segcft_ext.chain": {"run": chain.run, "demo": chain.demo},
    "segcft_ext.report": {"": report.report},
    "data_prep": {name: getattr(data_prep.__main__, name) for name in DATA_PREP},
}


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


def check_bundle_command(folder, words):
    """``words`` follow ``python -m monai.bundle run`` and are typed in ``folder``, that of the bundles or the root."""
    options = dict(zip((word.removeprefix("--").partition("#")[0] for word in words[::2]), words[1::2]))
    given = options.pop("config_file")
    files = ast.literal_eval(given) if given.startswith("[") else [given]
    start = next(place for place in (folder, ROOT / "bundles", ROOT) if (place / files[0]).is_file())
    assert (start / options["bundle_root"]).is_dir()
    keys = [key for file in files for key in json.loads((start / file).read_text(encoding="utf-8"))]
    assert set(options) <= {key.partition("#")[0] for key in keys}


def check_program_command(program, words):
    """``words`` follow ``python -m program``."""
    command, *options = ["", *words] if program == "segcft_ext.report" else words
    check_options(program, PROGRAMS[program][command], options)


@pytest.mark.parametrize(("folder", "command"), [(f, c) for f, c in COMMANDS if "-m monai.bundle run" in c])
def test_bundles_know_the_options_of_the_docs(folder, command):
    check_bundle_command(folder, shlex.split(command, comments=True)[4:])


@pytest.mark.parametrize("command", [c for _, c in COMMANDS if c.split()[2] in PROGRAMS])
def test_programs_know_the_options_of_the_docs(command):
    _, _, program, *words = shlex.split(command, comments=True)
    check_program_command(program, words)


@pytest.mark.parametrize(("script", "stages"), [("radiographs.sh", 13), ("coronary.sh", 44)])
def test_benchmarks_run_to_the_end_with_options_that_are_known(script, stages, tmp_path):
    """Each ``python`` of the script is replaced by a program that notes its arguments and makes the output folder."""
    stub, log = tmp_path / "bin" / "python", tmp_path / "log"
    stub.parent.mkdir()
    stub.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"print(json.dumps(sys.argv[1:]), file=open({str(log)!r}, 'a'))\n"
        "for option, value in zip(sys.argv, sys.argv[1:]):\n"
        "    if option in ('--output_dir', '--out'):\n        os.makedirs(value, exist_ok=True)\n"
    )
    stub.chmod(0o755)
    arguments = [str(tmp_path / "cxr")] if script == "radiographs.sh" else []
    environment = {**os.environ, "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "benchmarks" / script), *arguments, str(tmp_path / "out")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    commands = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(commands) == stages
    for _, program, *words in commands:
        if program == "monai.bundle":
            check_bundle_command(ROOT, words[1:])
        else:
            check_program_command(program, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8"))
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        if not target.exists() or (anchor and anchor not in anchors):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_headings_and_items_begin_lines_of_their_own(page):
    """Refilling a paragraph must not swallow the heading above it or the items of a list below it."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^#+ .*\n.+|[.:] - [A-Z*`].*", text, re.MULTILINE) == []


def test_every_page_of_data_preparation_is_linked():
    linked = (ROOT / "docs" / "data_prep.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs" / "data_prep").glob("*.md")]
    assert pages and [page for page in pages if f"](data_prep/{page})" not in linked] == []


def test_an_image_of_docker_holds_nothing_that_runs_of_the_bundles_left():
    """Radiographs, label maps and models may lie in the bundles' folders, and a store of runs above or in them."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").replace("/\n", "\n").split()
    left = [line for line in ignored if line.startswith("bundles/")] + ["**/mlflow.db*", "**/mlruns"]
    assert len(left) > 2 and set(left) <= set((ROOT / ".dockerignore").read_text(encoding="utf-8").split())


def test_constraints_pin_every_dependency():
    declared = importlib.metadata.requires("segcft-ext") or []
    needed = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in declared} - {"segcft-ext"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert needed and needed <= pinned
    assert "torch==2.13.0" in lines
