import pytest

from data_prep.rows import read_table
from data_prep.table import infer_kind


def test_cells_may_be_empty_quoted_and_long_but_none_may_lack(tmp_path):
    long, path = "7" * 200_000, tmp_path / "cases.csv"
    whole = f'\ufeffid,name,age\r\n1,"Doe, J.",\r\n  \r\n2,"two\r\nlines",{long}\r\n3,,\r\n,,\r\n'
    path.write_bytes(whole.encode())
    assert read_table(path).values.tolist() == [["1", "Doe, J.", ""], ["2", "two\r\nlines", long], ["3", "", ""]]
    for cut, message in (("4,x", "line 8: found 2 cells, expected 3"), ('4,x,"', "unexpected end of data")):
        path.write_bytes((whole + cut).encode())
        with pytest.raises(ValueError, match=f"cases.csv: the table cannot be read: {message}$"):
            read_table(path)


def test_a_text_among_numbers_is_said():
    assert infer_kind(["50", "61.5", "-3"], "age") == "continuous"
    with pytest.raises(ValueError, match=r"age: 31 different values \(1 of 31 are no numbers\), so its kind"):
        infer_kind([*map(str, range(30)), "old"], "age")
    with pytest.raises(ValueError, match="name: 30 different values, so its kind"):
        infer_kind([f"n{i}" for i in range(30)], "name")


def test_a_code_with_an_underscore_is_no_number():
    assert infer_kind(["1_0", "10", "2_0", "1_0"], "cases.csv: column 'site'") == ["10", "1_0", "2_0"]


def test_numbers_with_a_decimal_comma_do_not_become_categories():
    with pytest.raises(ValueError, match="column 'dose': found '0,5', expected numbers with a decimal point"):
        infer_kind(["1", "0,5", "1,5"], "cases.csv: column 'dose'")
