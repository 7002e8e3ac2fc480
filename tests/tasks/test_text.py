"""Text from anywhere, in bounded memory; and what is said when it is not text."""

import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from memseq.errors import DataError
from memseq.tasks import text as text_module
from memseq.tasks.text import books, open_text, stdlib
from memseq.tasks.tokenizers import BPE, Bytes
from memseq.training.lanes import Lanes, StreamLanes

LINES = "".join(f"line {i} of the text\n" for i in range(10_000)).encode()  # 210 kB: several chunks


def content(text):
    """Every document, whole."""
    return [b"".join(text.pieces(d)) for d in range(len(text))]


@pytest.fixture(scope="module")
def bpe():
    pytest.importorskip("tokenizers")
    return BPE.train([LINES[:20_000]], 300)


def test_a_file_is_a_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(LINES)
    text = open_text([tmp_path / "a.txt"])
    assert len(text) == 1
    assert text.size == len(LINES)
    assert content(text) == [LINES]


def test_a_folder_is_searched_in_order_and_leaves_out_what_is_no_text(tmp_path):
    for name, data in {
        "b.txt": b"bb",
        "a/z.py": b"zz",
        "a/a.md": b"aa",
        ".hidden": b"hh",
        "e.txt": b"",
        "f.bin": b"\0\1",
        "one": b"1",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with gzip.open(tmp_path / "c.gz", "wb") as file:
        file.write(b"cc")
    assert content(open_text([tmp_path])) == [b"bb", b"cc", b"aa", b"zz"]


def test_gzip_json_lines_and_standard_input(tmp_path, monkeypatch):
    rows = "\n".join(json.dumps({"text": f"döc {i}", "id": i}) for i in range(5))
    (tmp_path / "d.jsonl").write_text(rows + "\n\n")
    with gzip.open(tmp_path / "d.jsonl.gz", "wb") as file:
        file.write(rows.encode())
    with gzip.open(tmp_path / "t.txt.gz", "wb") as file:
        file.write(LINES)
    expected = [f"döc {i}".encode() for i in range(5)]
    assert content(open_text([tmp_path / "d.jsonl"])) == expected
    assert content(open_text([tmp_path / "d.jsonl.gz"])) == expected
    assert content(open_text([tmp_path / "t.txt.gz"])) == [LINES]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    assert content(open_text(["-"])) == [LINES]


def test_another_field_of_json_lines(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"body": "hello"}')
    assert content(open_text([tmp_path / "d.jsonl"], field="body")) == [b"hello"]


@pytest.mark.parametrize("kind", ["txt", "gz", "jsonl"])
def test_chunks_depend_on_where_they_begin_alone(tmp_path, bpe, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "gz":
        with gzip.open(path, "wb") as file:
            file.write(LINES)
    else:
        path.write_bytes(LINES if kind == "txt" else json.dumps({"text": LINES.decode()}).encode())
    for tokenizer in (Bytes(), bpe):
        text = open_text([path], tokenizer)
        chunks = list(text.chunks(0))
        assert len(chunks) > 2
        assert np.array_equal(np.concatenate([ids for _, ids in chunks]), tokenizer.encode(LINES))
        for skipped in range(len(chunks)):
            again = list(text.chunks(0, chunks[skipped][0]))
            assert [at for at, _ in again] == [at for at, _ in chunks[skipped:]]
            assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(again, chunks[skipped:], strict=True))


def test_parts_are_the_whole_cut_at_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(LINES)
    parts = open_text([tmp_path / "a.txt"]).at_least(13)
    assert len(parts) >= 13
    assert b"".join(content(parts)) == LINES
    assert all(part.endswith(b"\n") for part in content(parts))


def test_parts_of_a_text_without_lines_do_not_cut_characters(tmp_path):
    (tmp_path / "a.txt").write_bytes("日".encode() * 20_000)
    for part in content(open_text([tmp_path / "a.txt"]).at_least(7)):
        part.decode("utf-8")


def test_held_out_text_is_apart_and_always_the_same(tmp_path):
    (tmp_path / "a.txt").write_bytes(LINES)
    train, valid = open_text([tmp_path / "a.txt"]).split(0.1)
    assert content(train)[0] + content(valid)[0] == LINES
    assert 0.09 < valid.size / len(LINES) < 0.11
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": f"document {i}"}) for i in range(100)))
    train, valid = open_text([tmp_path / "d.jsonl"]).split(0.05)
    assert len(valid) == 5
    assert sorted(content(train) + content(valid)) == sorted(content(open_text([tmp_path / "d.jsonl"])))
    assert content(open_text([tmp_path / "d.jsonl"]).split(0.05)[1]) == content(valid)


def test_the_standard_library_is_always_there():
    train, valid = stdlib()
    assert train.size > 5_000_000
    assert 0.02 < valid.size / train.size < 0.12
    names = [train.name(d) for d in range(len(train))]
    others = {valid.name(d) for d in range(len(valid))}
    assert "argparse.py" in {*names, *others}
    assert not any("site-packages" in name or name.startswith("test/") for name in names)
    assert not set(names) & others
    again = stdlib()[0]
    assert names == [again.name(d) for d in range(len(again))]


def test_books_of_a_split(data_dir):
    train, valid = books(data_dir / "books", "train"), books(data_dir / "books", "valid")
    assert (len(train), len(valid)) == (23, 3)
    with pytest.raises(DataError, match=r"names no book of split 'dev'; it holds \['test', 'train', 'valid'\]"):
        books(data_dir / "books", "dev")


def test_a_long_line_is_read_in_bounded_memory(tmp_path):
    """A gigabyte in one line, without a white space: the hole of a sparse file, with letters at both ends."""
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        file.write(b"a" * 1000)
        file.seek(10**9)
        file.write(b"b" * 1000)
    script = (
        "import resource, sys\n"
        "from memseq.tasks.text import open_text\n"
        "from memseq.training.lanes import Lanes\n"
        "text = open_text([sys.argv[1]])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "lanes = Lanes(text, batch_size=8, segment_length=1 << 16)\n"
        "read = sum(int((next(lanes).targets != -100).sum()) for _ in range(300))\n"
        "print(read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, env=environment, check=True)
    read, grown = (int(n) for n in done.stdout.split())
    assert read > 150e6
    assert grown < 60_000  # kilobytes


def test_bytes_train_on_anything(tmp_path):
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 10)
    segment = next(Lanes(open_text([tmp_path / "noise"]), batch_size=1, segment_length=100))
    assert segment.tokens[0, :100].tolist() == list(range(100))


def test_a_streamed_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    for shard in range(2):
        (tmp_path / f"{shard}.jsonl").write_text("\n".join(json.dumps({"text": f"shard {shard} row {i} " * (i + 1)}) for i in range(6)))
    stream = open_text([f"hf:{tmp_path}:train"])
    lanes = StreamLanes(stream, batch_size=2, segment_length=16)
    first = next(lanes)
    assert bytes(first.tokens[0].tolist()).startswith(b"shard 0 row 0")
    for _ in range(11):
        next(lanes)
    state = json.loads(json.dumps(lanes.state_dict()))
    expected = [next(lanes) for _ in range(60)]  # into later epochs
    resumed = StreamLanes(open_text([f"hf:{tmp_path}:train"]), batch_size=2, segment_length=16)
    resumed.load_state_dict(state)
    for ours in expected:
        theirs = next(resumed)
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    assert isinstance(stream.dataset, datasets.IterableDataset)


def test_a_shuffled_stream_resumes_too():
    datasets = pytest.importorskip("datasets")
    from memseq.tasks.datasets import TextStream

    def lanes():
        rows = datasets.Dataset.from_dict({"text": [f"row {i} " * 5 for i in range(30)]}).to_iterable_dataset(num_shards=3)
        return StreamLanes(TextStream(rows.shuffle(seed=1, buffer_size=8), Bytes()), batch_size=2, segment_length=16)

    ours, theirs = lanes(), lanes()
    for _ in range(17):
        next(ours)
    theirs.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    for _ in range(80):
        assert all((a == b).all() for a, b in zip(next(ours), next(theirs), strict=True))


def test_processes_share_a_data_set():
    datasets = pytest.importorskip("datasets")
    from memseq.tasks.datasets import TextStream

    rows = datasets.Dataset.from_dict({"text": [f"row {i:2}" for i in range(20)]}).to_iterable_dataset(num_shards=4)
    parts = [TextStream(rows, Bytes()).shard(rank, 2) for rank in range(2)]
    read = [[bytes(next(part.take()[1])[1]) for _ in range(10)] for part in parts]
    assert sorted(read[0] + read[1]) == [f"row {i:2}".encode() for i in range(20)]


# What is said about text that cannot be read


def fails(places, **options):
    def read():
        text = open_text(places, **options)
        for document in range(len(text)):
            list(text.chunks(document))

    with pytest.raises(DataError) as caught:
        read()
    return str(caught.value)


def test_an_empty_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    assert fails([tmp_path / "a.txt"]).endswith("a.txt is empty (0 bytes); give text to learn from")


def test_a_file_of_one_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x")
    assert "holds a single byte, and nothing follows it that could be predicted; give 2 bytes or more" in fails([tmp_path / "a.txt"])


def test_a_missing_file(tmp_path):
    assert "there is no file or folder" in fails([tmp_path / "nowhere.txt"])


def test_an_unreadable_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(LINES)
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):  # another user must reach the file to be refused it
        if folder.name.startswith("pytest-of-") or folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    folder.chmod(folder.stat().st_mode | 0o055)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        message = fails([path])
    finally:
        os.seteuid(was)
    assert "cannot be read (Permission denied); check its permissions" in message


def test_a_folder_without_text(tmp_path):
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "empty").write_bytes(b"")
    assert "holds no text (2 files are empty or binary); name a file, or another folder" in fails([tmp_path])


def test_a_pipe_that_is_named_as_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is neither a file nor a folder; to read a pipe, use -" in fails([tmp_path / "pipe"])


def test_invalid_utf8_under_bpe(tmp_path, bpe):
    (tmp_path / "a.txt").write_bytes(LINES[:100_000] + b"\xff" + LINES)
    message = fails([tmp_path / "a.txt"], tokenizer=bpe)
    assert "a.txt, in the part from byte " in message
    assert "not UTF-8: byte 0xff" in message
    assert "train on bytes (--tokenizer bytes)" in message


@pytest.mark.parametrize(
    "data", [b"no gzip at all", gzip.compress(LINES)[:-100], gzip.compress(LINES)[:200] + b"\0" * 500], ids=["other", "cut", "broken"]
)
def test_a_broken_gzip(tmp_path, data):
    (tmp_path / "a.txt.gz").write_bytes(data)
    assert "is not a whole gzip file" in fails([tmp_path / "a.txt.gz"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "has a line at byte 0 that is not JSON"),
        ('{"body": "x"}', "without text under 'text': it holds the fields ['body']; rename the field, or name it"),
        ('{"text": 3}', "without text under 'text': it holds the fields ['text']"),
        ("[1, 2]", "it holds a list"),
        ("\n\n", "holds no JSON lines"),
        ('{"text": "fine"}\n{"text": ', "has a line at byte 17 that is not JSON"),
    ],
)
def test_foreign_json_lines(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text(line)
    assert says in fails([tmp_path / "a.jsonl"])


def test_a_full_disk_while_unpacking(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        file.write(LINES)
    monkeypatch.setattr(text_module.tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    assert "could not be unpacked to" in (message := fails([tmp_path / "a.gz"]))
    assert "No space left on device" in message


def test_too_little_text_for_so_many_lanes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a few words")
    with pytest.raises(DataError, match="1 documents of 11 bytes are too little text for 16 lanes; use a smaller batch or more text"):
        Lanes(open_text([tmp_path / "a.txt"]), batch_size=16, segment_length=4)


def test_nothing_named_and_data_sets_beside_files():
    assert "no text was named" in fails([])
    assert "is streamed on its own" in fails(["hf:name", "a.txt"])
    pytest.importorskip("datasets")
    assert "hf: names no data set" in fails(["hf:"])


def test_a_data_set_that_does_not_exist(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    assert "cannot be opened" in fails([f"hf:{tmp_path / 'nowhere'}"])
