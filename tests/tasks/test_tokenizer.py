"""Token ids stand for the text exactly, however it comes in pieces, and transformers reads the same ids from the saved files."""

import random
from itertools import pairwise

import numpy as np
import pytest

from memseq.errors import ConfigError, DataError
from memseq.tasks.tokenizers import BPE, Bytes, byte_symbols, load_tokenizer

SAMPLE = (
    "def café(x):\n    return 'naïve' + str(x)  # 日本語、テキスト。\n\n\n  don't  stop\tnow…\r\n"
    "Grüße aus Köln 😀 über 1234 Straßen\n\nthe end of the line\n"
) * 20


@pytest.fixture(scope="module")
def bpe():
    pytest.importorskip("tokenizers")
    return BPE.train([SAMPLE.encode()], 400)


def pieces(data, rng):
    cuts = sorted(rng.sample(range(len(data) + 1), rng.randrange(0, 40)))
    return [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]


def test_bytes_are_their_own_ids():
    every = bytes(range(256))
    assert Bytes().encode(every).tolist() == list(every)
    assert Bytes().decode_bytes(Bytes().encode(every)) == every
    assert Bytes().decode([0xC3, 0xA9, 0xFF]) == "é�"


def test_pieces_give_the_ids_of_the_whole(bpe):
    rng = random.Random(0)
    data = SAMPLE.encode()
    for tokenizer in (Bytes(), bpe):
        whole = tokenizer.encode(data)
        for _ in range(50):
            assert np.array_equal(np.concatenate(list(tokenizer.encode_chunks(pieces(data, rng)))), whole)


def test_bpe_gives_back_every_text(bpe):
    other = "never seen: ﷽ Ω≈ç √∫ \x00\x01 \n\n\n x  y   z"
    for text in (SAMPLE, other):
        assert bpe.decode(bpe.encode(text.encode())) == text
    assert 256 < bpe.vocab_size <= 400
    assert len(bpe.encode(SAMPLE.encode())) < 0.7 * len(SAMPLE.encode())


def test_token_bytes_add_up_to_the_text(bpe):
    data = SAMPLE.encode()
    for tokenizer in (Bytes(), bpe):
        assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
        assert tokenizer.token_bytes[tokenizer.encode(data)].sum() == len(data)


def test_text_without_white_space_is_cut_between_characters(bpe):
    data = ("語" * 50_000).encode()  # 150,000 bytes, no place to split
    ids = list(bpe.encode_chunks([data[:70_001], data[70_001:]]))
    assert len(ids) > 1
    assert bpe.decode_bytes(np.concatenate(ids)) == data


def test_invalid_utf8_says_where_and_what_to_do(bpe):
    with pytest.raises(DataError, match=r"not UTF-8: byte 0xff at offset 3; train on bytes \(--tokenizer bytes\) or convert"):
        bpe.encode(b"abc\xffdef")
    assert Bytes().encode(b"abc\xff").tolist() == [97, 98, 99, 255]


def test_saved_files_load_here(bpe, tmp_path):
    for tokenizer in (Bytes(), bpe):
        tokenizer.save(tmp_path / repr(tokenizer))
        again = load_tokenizer(tmp_path / repr(tokenizer))
        assert type(again) is type(tokenizer)
        assert again.fingerprint == tokenizer.fingerprint
        assert np.array_equal(again.encode(SAMPLE.encode()), tokenizer.encode(SAMPLE.encode()))
    assert Bytes().fingerprint != bpe.fingerprint


def test_transformers_reads_the_same_ids(bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    text = SAMPLE + "".join(map(chr, range(0x800))) + "\U0001f600"
    for tokenizer in (Bytes(), bpe):
        tokenizer.save(tmp_path / repr(tokenizer))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / repr(tokenizer))
        ids = theirs(text)["input_ids"]
        assert ids == tokenizer.encode(text.encode()).tolist()
        assert theirs.decode(ids) == text
        assert len(theirs) == tokenizer.vocab_size


def test_our_byte_symbols_are_those_of_the_tokenizers_package():
    tokenizers = pytest.importorskip("tokenizers")
    assert sorted(byte_symbols()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def test_what_cannot_be_loaded_or_trained(tmp_path, bpe):
    with pytest.raises(DataError, match=r"there is no tokenizer at .*nowhere"):
        BPE.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer of the tokenizers package"):
        BPE.load(tmp_path)
    with pytest.raises(ConfigError, match="vocab_size=100 is too small: a byte-level vocabulary begins with the 256 bytes"):
        BPE.train([b"text"], 100)
