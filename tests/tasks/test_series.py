"""Series from files: what is read is what is written, real files are what they should be, broken ones are told apart."""

import gzip

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError, DataError
from memseq.tasks.series import ETT_COLUMNS, Forecasts, etth1, japanese_vowels, read_ett, read_ts

TS = """# a comment
@problemName Toy
@classLabel true one two

@data
1,2,3:4,5,6:one
7,8:9,10:two
"""


def written(path, text):
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["toy.ts", "toy.ts.gz"])
def test_a_ts_file_is_read_channel_by_channel(tmp_path, name):
    data = read_ts(written(tmp_path / name, TS))
    assert [s.tolist() for s in data.series] == [[[1, 4], [2, 5], [3, 6]], [[7, 9], [8, 10]]]
    assert data.labels.tolist() == [0, 1]
    assert data.classes == ("one", "two")
    batch = data.batch(torch.tensor([1, 0]))
    assert batch.lengths.tolist() == [2, 3]
    assert batch.labels.tolist() == [1, 0]
    assert batch.inputs[0].tolist() == [[7, 9], [8, 10], [0, 0]]
    every = torch.cat(data.normalised(data).series)
    assert_close(every.mean(0), torch.zeros(2), rtol=0, atol=1e-6)
    assert_close(every.std(0), torch.ones(2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2:one\n", "line 1: values before @data"),
        ("@classLabel false\n@data\n1,2:one\n", "names no classes"),
        ("@classLabel true one\n@data\n", "holds no series"),
        ("@classLabel true one\n@data\n1,2:two\n", "class 'two', which its header does not name: one"),
        ("@classLabel true one\n@data\n1,2:3:one\n", "line 3: channels of \\[2, 1\\] steps"),
        ("@classLabel true one\n@data\n1,x:one\n", "line 3: 'x' is no number"),
        ("@classLabel true one\n@data\n1,nan:one\n", "line 3: a value is missing or not finite"),
        ("@classLabel true one\n@data\n1,2:one\n1,2:3,4:one\n", "series of \\[1, 2\\] channels"),
    ],
)
def test_a_broken_ts_file_is_told_with_its_line(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read_ts(written(tmp_path / "toy.ts", text))


def ett(hours, columns=("date", *ETT_COLUMNS)):
    rows = [f"2016-07-01 00:00:00,{','.join(str(7 * t + c) for c in range(7))}" for t in range(hours)]
    return "\n".join([",".join(columns), *rows]) + "\n"


def test_an_ett_file_is_read_in_order(tmp_path):
    assert_close(read_ett(written(tmp_path / "ETTh1.csv", ett(3))), torch.arange(21.0).view(3, 7))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ett(2, ("date", "a")), "has the columns"),
        (ett(0), "holds no rows"),
        (ett(2) + "2016-07-01,1,2\n", "line 4: 2 values instead of 7"),
    ],
)
def test_a_broken_ett_file_is_told(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read_ett(written(tmp_path / "ETTh1.csv", text))


def test_missing_and_truncated_files_are_told(tmp_path):
    with pytest.raises(DataError, match=r"holds no ETTh1\.csv or ETTh1\.csv\.gz; give the folder"):
        etth1(tmp_path)
    with pytest.raises(DataError, match=r"holds no JapaneseVowels_TRAIN\.ts or"):
        japanese_vowels(tmp_path)
    with pytest.raises(DataError, match="there is no file"):
        read_ts(tmp_path / "nothing.ts")
    whole = gzip.compress(ett(500).encode())
    (tmp_path / "ETTh1.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot be read .* it may be truncated"):
        etth1(tmp_path)
    written(tmp_path / "ETTh1.csv.gz", ett(500))
    with pytest.raises(DataError, match="has 500 hours and the splits need 14400"):
        etth1(tmp_path)


def test_windows_are_all_that_fit():
    part = torch.arange(10.0)[:, None] * torch.ones(2)
    assert Forecasts.windows(part, 4)[:, :, 0].tolist() == [list(range(i, i + 4)) for i in range(7)]
    assert len(Forecasts.windows(part, 4, every=3)) == 3
    with pytest.raises(ConfigError, match="length=11 does not fit a part of 10 steps"):
        Forecasts.windows(part, 11)


def test_the_real_vowels_are_what_they_should_be(data_dir):
    train, test = japanese_vowels(data_dir / "japanesevowels")
    assert (len(train), len(test)) == (270, 370)
    assert train.labels.bincount().tolist() == [30] * 9
    assert test.labels.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    lengths = [len(s) for s in (*train.series, *test.series)]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert {s.shape[1] for s in train.series} == {12}
    assert_close(train.series[0][0, 0], torch.tensor(1.860936))


def test_the_real_hours_are_what_they_should_be(data_dir):
    parts = etth1(data_dir / "ett", context=96)
    assert [len(part) for part in parts] == [8640, 2976, 2976]
    assert torch.equal(parts.valid[:96], parts.train[-96:])
    assert torch.equal(parts.test[:96], parts.valid[-96:])
    assert_close(parts.train.mean(0), torch.zeros(7), rtol=0, atol=1e-4)
    assert_close(parts.train.std(0, correction=0), torch.ones(7), rtol=1e-4, atol=0)
    whole = read_ett(data_dir / "ett" / "ETTh1.csv.gz")
    assert whole.shape == (17_420, 7)
    assert_close(whole[0, -1], torch.tensor(30.5310001373291))
