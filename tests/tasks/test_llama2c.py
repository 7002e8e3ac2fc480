"""The tokenizer of llama2.c: joins by score, bytes for what no piece covers, and files that are none."""

import struct

import pytest

from memseq.errors import DataError
from memseq.tasks.llama2c import read_llama2c_tokenizer

PIECES = [("ab", -1.0), ("bc", -2.0), ("abc", -3.0), (" a", -4.0), (" ", -90.0), ("a", -91.0), ("b", -92.0), ("c", -93.0)]


def write(path, pieces):
    names = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    entries = [(name, 0.0) for name in names] + pieces
    data = b"".join(struct.pack("<fi", score, len(text.encode())) + text.encode() for text, score in entries)
    path.write_bytes(struct.pack("<i", 9) + data)
    return path


def test_the_pair_of_the_highest_score_is_joined_first(tmp_path):
    tokenizer = read_llama2c_tokenizer(write(tmp_path / "tok.bin", PIECES))
    number = {text: 259 + i for i, (text, _) in enumerate(PIECES)}
    assert tokenizer.vocab_size == 259 + len(PIECES)
    assert tokenizer.encode(b"abc").tolist() == [number["abc"]]
    assert tokenizer.encode(b"bcab").tolist() == [number["bc"], number["ab"]]
    assert tokenizer.encode(b" a c").tolist() == [number[" a"], number[" "], number["c"]]
    text = "ab\u00e9\nc".encode()
    ids = tokenizer.encode(text).tolist()
    assert ids == [number["ab"], 3 + 0xC3, 3 + 0xA9, 3 + 0x0A, number["c"]]
    assert tokenizer.decode(ids) == "ab\u00e9\nc"


def test_what_is_no_tokenizer_is_said(tmp_path):
    file = write(tmp_path / "tok.bin", PIECES)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="reaches past the end"):
        read_llama2c_tokenizer(file)
    with pytest.raises(DataError, match="there is no tokenizer to read"):
        read_llama2c_tokenizer(tmp_path / "none.bin")
    file.write_bytes(b"\0" * 28)
    with pytest.raises(DataError, match="fewer than the bytes"):
        read_llama2c_tokenizer(file)
