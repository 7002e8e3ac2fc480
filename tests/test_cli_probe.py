"""`memseq probe` and `memseq report`: a whole run, a run that was cut, and what cannot be done, on one line."""

import json
from pathlib import Path

import pytest

from memseq.cli import main
from memseq.probes import PROBES
from memseq.report.combined import opened

NAMES = ["recall", "capacity", "retention", "copying", "text", "collapse", "slots", "timescales", "fidelity", "cost"]
QUICK = ["--length", "64", "--samples", "2", "--quiet"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"line {i} of a TEXT that repeats itself; and says {i % 7} again? (yes)\n" for i in range(200)))
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    small = ["--set", "d_model=16", "layers.*.d_model=16", "slots.d_model=16", "ff_mult=1"]
    words = ["--steps", "2", "--batch-size", "2", "--segment-length", "8", "--horizon", "2", "--dtype", "float32", "--quiet"]
    assert main(["train", "memformer", str(text), "--out", str(out), *words, *small]) == 0
    return out


@pytest.fixture(scope="module")
def probed(trained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("probes") / "first"
    assert main(["probe", str(trained), *NAMES, "--out", str(out), *QUICK]) == 0
    return out


def said(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    told = capsys.readouterr().err
    assert told.startswith("memseq: ")
    assert told.count("\n") == 1
    return told


@pytest.mark.slow
def test_without_a_name_all_probes_are_run(trained, tmp_path):
    assert main(["probe", str(trained), "--out", str(tmp_path / "all"), *QUICK]) == 0
    told = opened(tmp_path / "all")
    assert set(told["probes"]) == set(PROBES) - set(told["skipped"])
    assert set(NAMES) <= set(told["probes"])


def test_probes_leave_numbers_and_a_page(probed):
    told = opened(probed)
    assert list(told["probes"]) == NAMES
    assert (told["model"]["system"], told["model"]["trained_length"], told["model"]["bounded"]) == ("memformer_lm", 16, True)
    assert told["settings"]["length"] == 64
    page = (probed / "report.html").read_text()
    assert json.dumps(told["probes"]["recall"]["result"]["accuracy"][0][0]) in page
    assert {p.name for p in probed.iterdir()} == {"parts", "probe.json", "report.html"}


def test_a_run_that_was_cut_goes_on(trained, tmp_path, capsys):
    out = tmp_path / "cut"
    words = ["probe", str(trained), "recall", "copying", "--out", str(out), *QUICK]
    assert main(words) == 0
    whole = opened(out)
    parts = sorted((out / "parts").glob("*.*.json"))
    lost = next(part for part in parts if part.name.startswith("copying"))
    kept = {part: part.stat().st_mtime_ns for part in parts if part != lost}
    lost.unlink()
    (out / "probe.json").unlink()
    assert "exists: --resume goes on" in said(capsys, *words)
    assert main([*words, "--resume"]) == 0
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    again = opened(out)
    assert {name: probe["result"] for name, probe in again["probes"].items()} == {n: p["result"] for n, p in whole["probes"].items()}
    assert "cannot be resumed: samples was 2 and is 3" in said(capsys, *words[:-2], "3", "--quiet", "--resume")
    assert main([*words, "--overwrite"]) == 0


def test_a_task_it_was_trained_on_may_be_asked(trained, tmp_path, capsys):
    out = tmp_path / "task"
    words = ["probe", str(trained), "task:recall", "--length", "48", "--quiet", "--out", str(out), "--json"]
    assert main([*words, "--set", "n_noise=0", "n_shown=2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["probes"]["task:recall"]["result"]["axes"] == {"n_segments": [4]}
    assert "has no field 'n_nois'; did you mean 'n_noise'" in said(capsys, *words, "--overwrite", "--set", "n_nois=0")
    assert "sets a field of a task, and none is named" in said(capsys, "probe", str(trained), "recall", "--set", "n_noise=0")


def test_models_lie_side_by_side(probed, tmp_path, capsys):
    page = tmp_path / "both.html"
    assert main(["report", str(probed), str(probed / "probe.json"), "--out", str(page)]) == 0
    out = capsys.readouterr().out
    assert "first (1)" in out
    assert "first (2)" in out
    assert page.read_text().count('class="facts"') == 2
    assert "exists; --overwrite replaces it" in said(capsys, "report", str(probed), "--out", str(page))
    assert main(["report", str(probed), "--out", str(page), "--overwrite", "--json"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe", "nowhere"], "there is no directory nowhere"),
        (["probe", "nowhere", "recal"], "there is no probe 'recal'; did you mean 'recall'?"),
        (["probe", "nowhere", "task:mqra"], "did you mean 'task:mqar'?"),
        (["probe", "nowhere", "--length", "0"], "--length must be more than 0"),
        (["probe", "nowhere", "--resume", "--overwrite"], "give one of them"),
        (["probe", "file.pt"], "file.pt is a file; give the directory"),
        (["probe", "empty"], "empty holds no config.json"),
        (["probe", "damaged"], "is not readable JSON"),
        (["probe", "foreign", "recall"], "no causal language model that transformers knows"),
        (["probe", "bare"], "bare holds no tokenizer.json"),
        (["probe", "bare", "text"], "bare holds no tokenizer.json"),
        (["probe", "bare", "slots"], "slots needs a model with slots"),
        (["probe", "bare", "recall", "--out", "full"], "full holds notes.txt, which is not of a probe"),
        (["probe", "bare", "recall", "--out", "full", "--overwrite"], "full holds notes.txt, which is not of a probe"),
        (["probe", "bare", "recall", "--out", "file.pt"], "file.pt is a file; name a folder"),
        (["report", "nowhere"], "there is no nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_on_one_line(capsys, tmp_path, monkeypatch, words, message):
    from memseq.memories.gru import GRUConfig
    from memseq.models import StackConfig
    from memseq.pretrained import save_pretrained

    monkeypatch.chdir(tmp_path)
    Path("file.pt").write_bytes(b"x")
    for folder in ("empty", "damaged", "foreign", "full"):
        Path(folder).mkdir()
    Path("damaged/config.json").write_text("{")
    Path("foreign/config.json").write_text('{"d_model": 768, "n_layer": 24, "ssm_cfg": {}}')
    Path("full/notes.txt").write_text("mine")
    save_pretrained(StackConfig(vocab_size=64, d_model=8, layers=(GRUConfig(d_model=8),)).build(), "bare")
    before = sorted(tmp_path.rglob("*"))
    assert message in said(capsys, *words)
    assert sorted(tmp_path.rglob("*")) == before  # and nothing was begun


def test_a_model_without_a_tokenizer_is_asked_by_tokens(tmp_path, capsys):
    from memseq.memories.gru import GRUConfig
    from memseq.models import StackConfig
    from memseq.pretrained import save_pretrained

    save_pretrained(StackConfig(vocab_size=64, d_model=8, layers=(GRUConfig(d_model=8),)).build(), tmp_path / "bare")
    words = ["probe", str(tmp_path / "bare"), "recall", "capacity", "retention", "copying", "collapse", "timescales", "fidelity", "cost"]
    assert main([*words, "--out", str(tmp_path / "out"), *QUICK, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["probes"]) == words[2:]
    assert told["model"]["tokenizer"] is None
