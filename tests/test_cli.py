"""The command line: what it prints can be read by programs, and what goes wrong is one line and exit code 2."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from memseq.cli import COMMANDS, gathered, main
from memseq.systems import SYSTEMS

SMALL = ["--set", "d_model=16", "layers.*.d_model=16", "slots.d_model=16", "ff_mult=1"]
TRAIN = ["--batch-size", "2", "--segment-length", "8", "--horizon", "2", "--dtype", "float32", "--quiet", *SMALL]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"line {i} of a text that repeats itself, and says {i % 7} again\n" for i in range(200)))
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", "memformer", str(text), "--steps", "3", "--out", str(out), *TRAIN]) == 0
    return out


def said(capsys, *words: str, code: int = 2) -> str:
    """The one line that a refused command leaves on standard error."""
    assert main(list(words)) == code
    told = capsys.readouterr()
    assert told.err.startswith("memseq: ")
    assert told.err.count("\n") == 1
    return told.err.removeprefix("memseq: ")


def printed(capsys, *words: str) -> dict:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tran"], "there is no command 'tran'; did you mean 'train'?"),
        (["train", "memfomer"], "did you mean 'memformer'?"),
        (["train", "memformer", "--stpes", "3"], "train has no flag --stpes; did you mean '--steps'?"),
        (["train", "memformer", "--steps", "x"], "--steps: x is no INT"),
        (["train", "memformer", "--size", "huge"], "invalid choice 'huge'"),
        (["train", "memformer", "--steps", "0"], "steps=0 must be more than 0"),
        (["train", "memformer", "nowhere.txt"], "there is no file or folder nowhere.txt"),
        (["train", "memformer", "--set", "slots.n_slot=3"], "no field 'slots.n_slot'; did you mean 'n_slots'?"),
        (["train", "memformer", "--set", "dropout=much"], "dropout must be a number, got 'much'"),
        (["train", "memformer", "--set", "d_model=64"], "make them equal"),
        (["train", "memformer", "--set", "dropout"], "'dropout' sets nothing; write path=value"),
        (["train", "memformer", "--set", "dropout=0.1", "--set", "dropout=0.2"], "dropout is set twice"),
        (["train", "memformer", "--set", "slots=3"], "slots is a config of its own"),
        (["train", "memformer", "--set", "layers.9.window=3"], "layers.9 names no item; there are 0 to 3"),
        (["train", "memformer", "--lr", "0.1", "--set", "training.optimizer.lr=0.2"], "both set the same"),
        (["train", "memformer", "--schedule", "sqr"], "there is no schedule 'sqr'; did you mean 'sqrt'?"),
        (["train", "memformer", "--schedule", "revolve"], "there is no schedule 'revolve'; did you mean 'revolve:N'?"),
        (["train", "memformer", "--schedule", "revolve:0"], "slots"),
        (["train", "memformer", "--schedule", "sqrt", "--backend", "backpropagation"], "--backend backpropagation keeps none"),
        (["train", "memformer", "--backend", "bptt"], "invalid choice 'bptt'"),
        (["train", "memformer", "--vocab-size", "500"], "--vocab-size sizes a tokenizer that is trained"),
        (["train", "memformer", "--tokenizer", "nowhere.json"], "nowhere.json"),
        (["train", "lstm", "--slots", "4"], "--slots 4 has no effect on lstm"),
        (["train", "gru", "--window", "4"], "--window 4 has no effect on gru"),
        (["train", "memformer", "--resume", "--out", "nowhere"], "nowhere holds no run to resume"),
        (["eval", "nowhere"], "there is no directory nowhere"),
        (["generate", "nowhere"], "there is nothing to continue"),
        (["generate", "nowhere", "--prompt", "x"], "there is no directory nowhere"),
        (["check", "nowhere:Config"], "nowhere cannot be imported"),
        (["check", "memseq.memories.gru:GRUConfg"], "did you mean 'GRUConfig'?"),
        (["check", "gru", "--laws", "splitz"], "did you mean 'splits'?"),
        (["check", "memformer_lm"], "memformer_lm needs vocab_size, layers, slots"),
        (["bench", "memfomer"], "did you mean 'memformer'?"),
        (["bench", "gru", "--steps", "0"], "--steps must be more than 0"),
        (["cite", "grue"], "did you mean 'gru'?"),
        (["show", "grue"], "did you mean 'gru'?"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_on_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in said(capsys, *words)
    assert list(tmp_path.iterdir()) == []  # and nothing was begun


def test_a_second_run_in_the_same_place_is_refused(capsys, trained, text):
    before = (trained / "command.json").read_bytes()
    assert "holds a run already" in said(capsys, "train", "memformer", str(text), "--steps", "9", "--out", str(trained), *TRAIN)
    assert (trained / "command.json").read_bytes() == before


def test_resuming_with_another_batch_size_is_refused(capsys, trained):
    message = said(capsys, "train", "memformer", "--resume", "--out", str(trained), "--batch-size", "3")
    assert "--batch-size 3 contradicts the run in" in message
    assert "which had 2" in message


def test_a_truncated_model_is_refused(capsys, trained, tmp_path):
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((trained / file).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:1000])
    assert "not a readable safetensors file" in said(capsys, "generate", str(tmp_path), "--prompt", "x")


def test_a_foreign_state_is_refused(capsys, trained, tmp_path):
    assert "there is no state at" in said(capsys, "generate", str(trained), "--state", str(tmp_path / "none"))
    (tmp_path / "text").write_text("no state")
    assert "not a readable state file" in said(capsys, "generate", str(trained), "--state", str(tmp_path / "text"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(capsys, text, tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in said(capsys, "train", "memformer", str(text), "--steps", "1", "--out", str(tmp_path / "x"), *TRAIN)


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_explained(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    told = " ".join(line.strip("│ ") for line in capsys.readouterr().out.splitlines())
    assert COMMANDS[command].__doc__.split(".")[0].split("`")[0].strip() in told
    assert not re.search(r"--[\w-]+ (INT|FLOAT|STR|\{None\})", told)  # every flag has a word for its value


def test_train_leaves_a_model_and_says_what_it_came_to(capsys, text, tmp_path):
    told = printed(capsys, "train", "memformer", str(text), "--steps", "2", "--out", str(tmp_path / "run"), *TRAIN)
    assert (told["steps"], told["tokens"], told["stopped_by"], told["dtype"]) == (2, 64, "steps", "float32")
    assert 0 < told["valid_bits_per_byte"] < 12
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl", "command.json"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }


@pytest.mark.parametrize(
    ("flags", "backend"),
    [
        (["--schedule", "revolve:1"], "Replay(schedule=Revolve(slots=1))"),
        (["--schedule", "offload"], "Replay(schedule=Offload("),
        (["--backend", "checkpoints"], "CheckpointChain()"),
        (["--backend", "backpropagation"], "Backpropagation()"),
    ],
    ids=lambda flags: " ".join(flags) if isinstance(flags, list) else "",
)
def test_every_way_to_the_gradients_is_a_flag_and_gives_the_same(capsys, trained, text, tmp_path, flags, backend):
    printed(capsys, "train", "memformer", str(text), "--steps", "3", "--out", str(tmp_path / "other"), *TRAIN, *flags)
    assert backend in json.loads((tmp_path / "other/checkpoints/step-00000003/training.json").read_text())["config"]
    losses = [json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"] for out in (trained, tmp_path / "other")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_resume_goes_on_as_the_run_was_started(capsys, text, tmp_path):
    """A run that lost its last checkpoint, resumed with no flag repeated, ends where one ends that lost nothing, bit for bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    values = ["dropout=0.1", "training.rate.warmup=1", "training.save_every=2"]
    for out in (whole, parts):
        assert main(["train", "memformer", str(text), *TRAIN, *values, "--steps", "4", "--out", str(out)]) == 0
    _, last = sorted((parts / "checkpoints").iterdir())
    shutil.rmtree(last)
    (parts / "model.safetensors").unlink()
    capsys.readouterr()
    assert printed(capsys, "train", "memformer", "--resume", "--quiet", "--out", str(parts))["steps"] == 4
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_another_seed_is_another_model(text, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert (
            main(
                ["train", "gru", str(text), "--steps", "1", "--seed", seed, "--out", str(tmp_path / name), "--quiet", "--dtype", "float32"]
            )
            == 0
        )
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_eval_says_what_the_memory_is_worth(capsys, trained, text):
    told = printed(capsys, "eval", str(trained), str(text), "--tokens", "1000", "--forget-every", "16")
    assert told["tokens"] == sum(row["tokens"] for row in told["by_position"]) == 999
    assert told["forget_every"] == 16
    assert set(told["bits_per_byte"]) == {"memory", "memory cleared", "byte counts", "gzip -9", "xz -9"}
    first, last = told["by_position"][0], told["by_position"][-1]
    assert first["memory"] == pytest.approx(first["memory cleared"])  # nothing was cleared yet
    assert (first["first"], last["last"]) == (1, 1023)
    assert main(["eval", str(trained), "--tokens", "200"]) == 0  # what was held out, as a table
    out = capsys.readouterr().out
    assert "memory cleared" in out
    assert "lines.txt" in out


def test_generate_goes_on_where_it_was_saved(capsys, trained, tmp_path):
    def generated(*words: str) -> str:
        assert main(["generate", str(trained), *words]) == 0
        return capsys.readouterr().out.removesuffix("\n")

    state = str(tmp_path / "stream")
    greedy = ["--temperature", "0"]
    whole = generated("--prompt", "line 7 ", "--tokens", "20", *greedy)
    assert whole.startswith("line 7 ")
    begun = generated("--prompt", "line 7 ", "--tokens", "8", "--save-state", state, *greedy)
    # bytes that make no character are replaced, so what is compared is what comes after
    assert generated("--state", state, "--tokens", "12", *greedy) == whole[len(begun) :]
    drawn = [generated("--prompt", "line", "--tokens", "12", "--seed", seed) for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_generate_reads_standard_input(trained):
    command = [sys.executable, "-m", "memseq", "generate", str(trained), "--prompt", "-", "--tokens", "4", "--temperature", "0"]
    done = subprocess.run(command, input=b"line 7 " * 400, capture_output=True, check=True)
    assert len(done.stdout.decode().removesuffix("\n")) in range(1, 5)


def test_check_proves_a_memory_of_the_users(capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            from dataclasses import dataclass
            from typing import NamedTuple
            import torch
            from torch import Tensor, nn
            from memseq.contract import Memory

            class Sum(NamedTuple):
                total: Tensor

            @dataclass(frozen=True, kw_only=True)
            class SumConfig:
                d_model: int
                leak: bool = False

                def build(self):
                    return SumMemory(self)

            class SumMemory(Memory[Sum]):
                def __init__(self, config):
                    super().__init__()
                    self.config, self.gain = config, nn.Parameter(torch.ones(config.d_model))

                def init_state(self, batch_size):
                    return Sum(self.gain.new_zeros(batch_size, self.config.d_model))

                def forward(self, x, state):
                    y = state.total[:, None] + (self.gain * x).cumsum(1)
                    return (y.flip(1) if self.config.leak else y), Sum(y[:, -1].clone())
        """)
    )
    monkeypatch.chdir(tmp_path)
    told = printed(capsys, "check", "mine:SumConfig", "--quick", "--laws", "splits", "causality", "streams")
    assert told["passed"]
    assert main(["check", "mine:SumConfig", "--quick", "--laws", "splits", "causality", "--set", "leak=true"]) == 1
    assert re.search(r"causality +no", capsys.readouterr().out)


def test_bench_counts_what_a_stream_holds(capsys):
    rows = printed(capsys, "bench", "gru", "attention", "--lengths", "64", "512", "--steps", "2")
    held = {(row["system"], row["length"]): row["state_bytes"] for row in rows}
    assert held["gru", 64] == held["gru", 512]
    assert held["attention", 512] > held["attention", 64]


def test_list_names_every_system(capsys):
    assert [row["system"] for row in printed(capsys, "list")] == list(SYSTEMS)
    assert main(["list", "--markdown"]) == 0
    assert capsys.readouterr().out.count("\n") == len(SYSTEMS) + 2


@pytest.mark.parametrize("stem", SYSTEMS)
def test_every_system_can_be_shown_and_cited(capsys, stem):
    assert main(["show", stem]) == 0
    assert SYSTEMS[stem].about in capsys.readouterr().out
    assert main(["cite", stem]) == 0
    assert re.match(r"@\w+\{\w+,\n", capsys.readouterr().out)


def test_the_flag_set_may_come_often():
    assert gathered(["train", "x", "--set", "a=1", "b=2", "--steps", "3", "--set=c=4", "--set", "d=5"]) == (
        ["train", "x", "--steps", "3", "--set", "a=1", "b=2", "c=4", "d=5"]
    )


def test_a_reader_that_leaves_early_is_no_error():
    script = f"{sys.executable} -m memseq list --json | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {script}"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[\n  {\n    ", "")
