"""What is typed means the same everywhere, and what means nothing is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

import data_prep.__main__
from segcft_ext import chain, report
from segcft_ext.command_line import check_booleans, check_options, read_names, read_sizes, read_whole, run_command
from segcft_ext.transforms import RadiographIntensityd

BUNDLES = Path(__file__).parents[1] / "bundles"
TRAININGS = sorted(BUNDLES.glob("*/configs/train*.json"))
OPTIONS = [
    (path, option)
    for path in TRAININGS
    for option, value in json.loads(path.read_text(encoding="utf-8")).items()
    if isinstance(value, bool) or option == "finetune_hvae"
]


def command(count: int, size: int, seed: int = 0, output_dir: str = "") -> None: ...


@pytest.mark.parametrize(
    "given",
    [
        ["--count", "3", "--output-dir=here"],
        ["-c", "3", "-o=here"],
        ["-count", "-3", "-1.5", "-.5", "-"],
        ["--help"],
        ["-h"],
        ["a-q", "--", "-q", "--quiet"],
    ],
)
def test_options_that_fire_knows_are_taken(given: list[str]) -> None:
    check_options("program", command, given)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--cout", "no option --cout;"),
        ("-q", "no option -q;"),
        ("-q=3", "no option -q;"),
        ("-cout", "no option -cout;"),
        ("-s", r"option -s may be any of \['size', 'seed'\];"),
    ],
)
def test_options_that_fire_does_not_know_are_refused(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message} see program --help"):
        check_options("program", command, ["--count", "3", option, "3"])


def several(*folders: str, out: str, strict: Any = False) -> None: ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["1", "2", "3", "4", "5"], "found '5', which belongs to no option"),
        (["1", "--size", "2", "-s=3", "3", "5", "my"], "option -s may be any"),
        (["1", "--size", "2", "3", "here", "--seed", "3", "runs"], "found 'here', which belongs to no option"),
        (["--output_dir", "--seed", "3"], "option --output_dir: found no value"),
        (["--seed", "3", "-o"], "option -o: found no value"),
    ],
)
def test_words_too_many_and_values_too_few_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}.*; see program --help"):
        check_options("program", command, given)


def test_words_and_flags_that_a_command_takes() -> None:
    check_options("program", several, ["a", "b c", "--strict", "--out", "x", "d"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (64, [64]),
        ("64", [64]),
        ("96x64", [96, 64]),
        ("96X64", [96, 64]),
        ("96, 64", [96, 64]),
        ("[96, 64]", [96, 64]),
        ((96, 64), [96, 64]),
    ],
)
def test_sizes(given: Any, expected: list[int]) -> None:
    assert read_sizes(given) == expected


@pytest.mark.parametrize("given", ["64x", "x64", "64x64x", "64,,64", "big", "", "-64", "6.4", 6.4, (), None, True])
def test_what_is_no_size_is_quoted(given: Any) -> None:
    with pytest.raises(ValueError, match=r"size: found .*, expected whole numbers, as 64, 96x64 or 96,64") as caught:
        read_sizes(given)
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize("given", ["age,sex", " age, sex ", ("age", "sex"), ["age", "sex"], '["age", "sex"]'])
def test_names(given: Any) -> None:
    assert read_names("variables", given) == ["age", "sex"]


@pytest.mark.parametrize("given", ["", "age,", "[age", [{"name": "age", "kind": "continuous"}], {"age": 1}, 3, None])
def test_what_is_no_name_is_quoted(given: Any) -> None:
    with pytest.raises(ValueError, match=r"variables: found .*, expected names, as a,b or") as caught:
        read_names("variables", given)
    assert repr(given) in str(caught.value)


def test_whole_numbers() -> None:
    assert [read_whole("seed", given, 0) for given in (3, "3", "0")] == [3, 3, 0]
    assert read_whole("axis", "-1") == -1


@pytest.mark.parametrize(
    ("given", "found"), [("abc", "'abc'"), (-1, "-1"), ("-1", "-1"), ("1.0", "'1.0'"), (True, "True")]
)
def test_what_is_no_whole_number_is_quoted(given: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"^seed: found {found}, expected a whole number from 0 on$"):
        read_whole("seed", given, 0)


def test_a_command_gets_its_values_as_they_are_typed() -> None:
    taken: list[Any] = []

    def prepare(*folders: str, out: str, size: Any = 64, strict: Any = False) -> None:
        taken.append((folders, out, size, strict))

    typed = ["1.10", "it's", "--out=1e3", "--size", "96,64", "--strict"]
    run_command("python -m program", prepare, typed)
    run_command("python -m program", {"prepare": prepare}, ["prepare", *typed])
    assert taken == [(("1.10", "it's"), "1e3", "96,64", True)] * 2


@pytest.mark.parametrize(
    ("main", "words"), [(chain.main, ["demo"]), (report.main, []), (data_prep.__main__.main, ["phantom"])]
)
def test_help_lists_options_and_no_groups(main: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    shown = "".join(capsys.readouterr())
    assert "FLAGS" in shown and "GROUP" not in shown


@pytest.mark.parametrize("found", ["false", "True", "", 2, None])
def test_what_is_neither_true_nor_false_is_refused(found: Any) -> None:
    check_booleans(resume=True, amp=0)
    with pytest.raises(ValueError, match=r"resume: found .*, expected True or False"):
        check_booleans(amp=False, resume=found)
    with pytest.raises(ValueError, match=r"prepared: found .*, expected True or False"):
        RadiographIntensityd("image", found)


@pytest.mark.parametrize(("path", "option"), OPTIONS, ids=[f"{p.parts[-3]}-{p.stem}-{o}" for p, o in OPTIONS])
def test_trainings_refuse_false_as_a_text_before_they_start(path: Path, option: str) -> None:
    parser = ConfigParser()
    parser.read_config(path)
    parser.get_parsed_content("initialize")
    parser = ConfigParser()
    parser.read_config(path)
    parser[option] = "false"
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("initialize")
    assert f"{option}: found 'false', expected True or False" in str(caught.value.__cause__)


@pytest.mark.parametrize("path", sorted(BUNDLES.glob("*/configs/train.json")), ids=lambda path: path.parts[-3])
def test_trainings_on_several_gpus_check_the_same(path: Path) -> None:
    alone, several = (
        json.loads(file.read_text(encoding="utf-8"))["initialize"]
        for file in (path, path.with_name("multi_gpu_train.json"))
    )
    assert alone[0] == several[0]
