"""The same rows for people and for programs."""

import json

from memseq.report.tables import as_json, markdown, print_table, size, spell

ROWS = [{"name": "a", "bits": 1.23456, "held": 1_000_000}, {"name": "b|c", "bits": float("nan"), "held": 5}]


def test_a_table_on_a_terminal(capsys):
    print_table(ROWS, title="both")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "both"
    assert lines[-3].split() == ["a", "1.235", "1,000,000"]
    assert lines[-2].split() == ["b|c", "5"]
    assert lines[-3].endswith("1,000,000")
    assert len(lines[-2]) == len(lines[-3])  # numbers stand under each other, to the right


def test_a_name_in_brackets_is_not_taken_for_markup(capsys):
    print_table([{"system": "[bold]x[/bold]"}])
    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_a_table_in_markdown():
    assert markdown(ROWS).splitlines() == ["| name | bits | held |", "| --- | --- | --- |", "| a | 1.235 | 1,000,000 |", "| b\\|c |  | 5 |"]
    assert markdown([]) == ""


def test_json_has_no_numbers_that_are_none():
    assert json.loads(as_json({"rows": ROWS, "more": (float("inf"), 2)})) == {
        "rows": [ROWS[0], {"name": "b|c", "bits": None, "held": 5}],
        "more": [None, 2],
    }


def test_sizes_and_words():
    assert [size(n) for n in (0, 999, 16_400, 2_229_000, 5 * 10**9)] == ["0 B", "999 B", "16.4 kB", "2.23 MB", "5 GB"]
    assert [spell(value) for value in (None, True, 12345, 12345.6, 0.000123456, "x")] == ["", "yes", "12,345", "12,346", "0.0001235", "x"]
