"""The recipes of Memformer compare what they say they compare; what they reach is measured by running them."""

import gzip
import struct

import numpy as np
import pytest
import torch

from memseq.errors import DataError
from memseq.recipes import memformer_mnist, memformer_recall, memformer_text
from memseq.recipes.fitting import weights_of
from memseq.recipes.memformer_recall import RecallRun


@pytest.mark.parametrize("near", ["sliding_window", "transformer_xl"])
@pytest.mark.parametrize("reading", ["all", "1,3"])
def test_contenders_on_text_have_as_many_weights(near, reading) -> None:
    what = memformer_text.TextComparison(near=near, reading=reading)
    configs = memformer_text.contenders(what)
    found = {name: weights_of(config) for name, config in configs.items()}
    assert len(found) == 4
    assert max(found.values()) <= 1.001 * min(found.values())
    assert configs["memformer"].reading == (None if reading == "all" else (1, 3))
    assert (configs["memformer"].layers[0] == configs["transformer_xl"].layers[0]) == (near == "transformer_xl")


def test_contenders_on_digits_have_as_many_weights_and_their_operations_are_counted() -> None:
    configs = memformer_mnist.contenders()
    sizes = [weights_of(config) for config in configs.values()]
    assert max(sizes) <= 1.001 * min(sizes)
    one, two = (memformer_mnist.step_flops(configs["memformer"], batch) for batch in (1, 2))
    assert one > 6 * sizes[0] * 28 * memformer_mnist.ROWS_A_WINDOW * 0.5  # six operations a weight and token, or most of them
    assert one < two <= 2 * one


def test_recall_learns_nothing_where_nothing_is_trained() -> None:
    row = memformer_recall.run(RecallRun(name="untrained", model=memformer_recall.memformer(), steps=1, stop_at=None, asked=128))
    assert row["accuracy"]["4"] < memformer_recall.question().chance + 0.05


def test_a_gradient_cut_at_one_segment_never_reaches_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """With horizon 1 the last segment alone is replayed: its loss depends on slots that were written before."""
    seen: list[float] = []
    clip = memformer_recall.clip_gradients
    models: list[torch.nn.Module] = []
    build = memformer_recall.MemformerLMConfig.build
    monkeypatch.setattr(memformer_recall.MemformerLMConfig, "build", lambda config: models.append(build(config)) or models[-1])

    def look(parameters, limit):
        grads = [p.grad for p in models[-1].writes.parameters()]
        seen.append(sum(float(g.abs().sum()) for g in grads if g is not None))
        return clip(parameters, limit)

    monkeypatch.setattr(memformer_recall, "clip_gradients", look)
    for horizon in (1, 4):
        memformer_recall.run(
            RecallRun(name="cut", model=memformer_recall.memformer(), horizon=horizon, steps=2, stop_at=None, test_on=(2,), asked=8)
        )
    assert seen[1] == 0.0  # the second step: reads have left zero
    assert seen[3] > 0.0


def test_the_claims_of_recall_are_those_of_the_worst_seed() -> None:
    rows = [
        {"name": "memformer, S=4", "accuracy": {"4": 1.0}},
        {"name": "memformer, S=4", "accuracy": {"4": 0.5}},
        {"name": "memformer, S=8", "accuracy": {"8": 0.995}},
        {"name": "length, norm", "accuracy": {"64": 0.96}},
    ]
    told = memformer_recall.claims(rows)
    assert [claim["ok"] for claim in told.values()] == [False, True, True]


def test_digits_are_read_from_idx_files(tmp_path) -> None:
    pixels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 784)
    data = struct.pack(">iiii", 2051, 2, 28, 28) + pixels.tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(data))
    assert (memformer_mnist.read_idx(tmp_path, "train-images-idx3-ubyte") == pixels).all()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(data[:-1])
    with pytest.raises(DataError, match="is not an IDX file of images, or is cut short"):
        memformer_mnist.read_idx(tmp_path, "t10k-images-idx3-ubyte")
    with pytest.raises(DataError, match=r"holds no other-images or other-images\.gz; give the folder of the four MNIST files"):
        memformer_mnist.read_idx(tmp_path, "other-images")
    with pytest.raises(DataError, match="2 images are too few for 3 lanes"):
        memformer_mnist.Images(pixels).at_least(3)


def test_the_real_digits_are_what_they_should_be(data_dir) -> None:
    images = memformer_mnist.read_idx(data_dir / "mnist", "t10k-images-idx3-ubyte")
    assert images.shape == (10_000, 784)
    assert 0.12 < (images > 127).mean() < 0.15  # ink
