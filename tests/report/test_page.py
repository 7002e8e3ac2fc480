"""The page is one file, well formed, shows what was measured, and asks nothing of any network."""

import json
import re
from html.parser import HTMLParser

import pytest

from memseq.errors import ConfigError, DataError
from memseq.report.answers import named, spoken
from memseq.report.combined import FORMAT, opened, written
from memseq.report.html import page
from memseq.report.plots import Line, heat, lines, short

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Tree(HTMLParser):
    """Every element opened is closed, in order; what is in it is kept."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.data = [], [], [], {}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.data.setdefault(self.open[-1][0], []).append(data)
            if self.open[-1][1].get("id") == "probe-data":
                self.data["json"] = data


def result(name="one", **probes):
    recall = {
        "loads": [1, 4],
        "distances": [0, 64],
        "accuracy": [[1.0, 0.5], [0.75, None]],
        "bits": [[4.0, 1.0], [2.0, None]],
        "chance": 0.0625,
        "asked": [16, 64],
        "says": [{"question": "How far back?", "answer": "64 tokens <b>&", "value": 64}],
    }
    probes = {"recall": {"about": "pairs are shown", "seconds": 1.0, "result": recall}} | probes
    model = {"name": name, "checkpoint": name, "system": "gru", "parameters": 1234, "vocab_size": 256, "bounded": True}
    model |= {"trained_length": 256, "longest": None, "state": "state", "segment_length": None, "tokenizer": None}
    return {
        "format": FORMAT,
        "model": model,
        "settings": {"length": 64},
        "machine": {"cpu": "a processor", "cores": 2, "gpu": None},
        "seconds": 1.0,
        "probes": probes,
        "skipped": {"slots": "slots needs a model with slots"},
    }


def task(name="task:mqar"):
    rows = [{"settings": {"n_pairs": n}, "length": 64, "chance": 0.1, "scores": {"accuracy": 0.5}} for n in (2, 4)]
    found = {"task": "mqar", "axes": {"n_pairs": [2, 4]}, "rows": rows, "chance": 0.1, "says": []}
    return {name: {"about": "what it was trained on", "seconds": 0.5, "result": found}}


def parsed(text):
    tree = Tree()
    tree.feed(text)
    assert tree.open == []
    return tree


@pytest.mark.parametrize("results", [[result()], [result(), result("two", **task()), result("two")]], ids=["one", "three"])
def test_the_page_is_whole_and_holds_the_numbers(results):
    text = page(results)
    tree = parsed(text)
    assert text.startswith("<!doctype html>")
    assert json.loads(tree.data["json"]) == results
    assert tree.tags.count("main") == tree.tags.count("h1") == tree.tags.count("table") == 1
    assert tree.tags.index("table") < tree.tags.index("svg")  # what a person wants to know stands first
    assert tree.tags.count("section") == len({probe for r in results for probe in r["probes"]})
    links = [value[1:] for tag, name, value in tree.attributes if tag == "a" and name == "href" and len(value) > 1]
    assert set(links) == {value for tag, name, value in tree.attributes if tag == "section" and name == "id"}
    assert "100%" in text
    assert "64 tokens &lt;b&gt;&amp;" in text


def test_nothing_is_fetched():
    text = page([result(), result("two", **task())])
    tree = parsed(text)
    assert not {"link", "img", "iframe", "object", "embed"} & set(tree.tags)
    assert not [a for a in tree.attributes if a[1] in ("src", "srcset", "data", "action")]
    assert all(value.startswith("#") for _, name, value in tree.attributes if name in ("href", "xlink:href"))
    code = "".join(tree.data["style"]) + tree.data["script"][-1]
    assert not re.search(r"https?:|//\w+\.|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", code)


def test_text_in_the_data_cannot_end_the_script():
    evil = result("</script><script>alert(1)</script>")
    tree = parsed(page([evil]))
    assert tree.tags.count("script") == 2
    assert json.loads(tree.data["json"]) == [evil]


def test_numbers_that_are_none_are_null():
    broken = result()
    broken["probes"]["recall"]["result"]["bits"][0][0] = float("inf")
    assert json.loads(parsed(page([broken])).data["json"])[0]["probes"]["recall"]["result"]["bits"][0][0] is None


def test_answers_lie_side_by_side():
    other = result("two")
    other["probes"]["recall"]["result"]["says"] = [{"question": "Another?", "answer": "yes", "value": 1}]
    assert spoken([result(), other]) == [
        {"question": "How far back?", "one": "64 tokens <b>&", "two": ""},
        {"question": "Another?", "one": "", "two": "yes"},
    ]
    assert spoken([result()]) == [{"question": "How far back?", "answer": "64 tokens <b>&"}]
    assert named([result(), result(), result("two")]) == ["one (1)", "one (2)", "two"]


def test_a_heat_map_tells_every_cell():
    drawn = heat(
        ["a", "b"],
        [0, 64],
        [[1.0, 0.5], [0.0, None]],
        down_label="down",
        across_label="across",
        low=0.0,
        high=1.0,
        tip=lambda i, j, v: f"{i} {j} {v}",
    )
    parsed(drawn)
    assert re.findall(r'fill-opacity="([\d.]+)"', drawn) == ["1.000", "0.500", "0.000"]
    assert [f'data-tip="{t}"' in drawn for t in ("a 0 1.0", "a 64 0.5", "b 0 0.0")] == [True] * 3
    assert drawn.count('class="none"') == 1


def test_lines_are_where_their_numbers_are():
    drawn = lines([Line(name="up", x=[0, 1, 3], y=[0.0, 5.0, None]), Line(name="two", x=[0, 3], y=[10.0, 0.0])], x_label="x", y_label="y")
    parsed(drawn)
    up, two = ([tuple(map(float, p.split(","))) for p in points.split()] for points in re.findall(r'polyline points="([^"]+)"', drawn))
    assert len(up) == 2  # what was not measured is left out
    assert (up[0][0], up[0][1]) == (two[0][0], two[1][1])  # 0 at the left, and at the bottom
    assert two[1][0] > up[1][0] > up[0][0]
    assert up[1][1] == pytest.approx((two[0][1] + two[1][1]) / 2, abs=0.06)
    assert (up[1][0] - up[0][0]) == pytest.approx((two[1][0] - two[0][0]) / 2, abs=0.06)  # log(1 + x): 1 lies in the middle of 3
    assert "Nothing was measured" in lines([Line(name="none", x=[0], y=[None])], x_label="x", y_label="y")
    assert "e+" not in lines([Line(name="log", x=[1, 2], y=[1e-3, 1e4])], x_label="x", y_label="y", log_y=True).split("aria-label")[1][:40]


def test_numbers_are_short():
    assert [short(x) for x in (0, 0.125, 3.14159, 4096, 131072, 2_500_000)] == ["0", "0.125", "3.14", "4,096", "131k", "2.5M"]


def test_what_is_no_probe_is_said(tmp_path):
    with pytest.raises(DataError, match="there is no"):
        opened(tmp_path / "nothing")
    (tmp_path / "probe.json").write_text("{")
    with pytest.raises(DataError, match="not readable JSON"):
        opened(tmp_path)
    (tmp_path / "probe.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="no result of memseq probe"):
        opened(tmp_path)
    (tmp_path / "probe.json").unlink()
    (tmp_path / "parts").mkdir()
    with pytest.raises(DataError, match="is not finished"):
        opened(tmp_path)
    (tmp_path / "probe.json").write_text(json.dumps(result()))
    assert opened(tmp_path) == opened(tmp_path / "probe.json") == result()


def test_a_page_is_not_written_over(tmp_path):
    out = written([result()], tmp_path / "deep" / "page.html")
    with pytest.raises(ConfigError, match="--overwrite replaces it"):
        written([result()], out)
    assert written([result("two")], out, overwrite=True).read_text().count("What two remembers") == 2
    with pytest.raises(ConfigError, match="is a folder"):
        written([result()], tmp_path)
    with pytest.raises(ConfigError, match="nothing to report"):
        written([], tmp_path / "none.html")
