"""Models in the file format of llama2.c: the published numbers of stories260K, and files that are none."""

import struct

import numpy as np
import pytest
import torch

from memseq.errors import CheckpointError
from memseq.retrofit import load_llama2c, with_memory
from memseq.streams import Session
from memseq.tasks.llama2c import read_llama2c_tokenizer

STORY = (
    " Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball."
    " She wanted to play with it, but it was too high."
)


@pytest.fixture(scope="module")
def stories(data_dir):
    folder = data_dir / "models" / "stories260K"
    return load_llama2c(folder / "stories260K.bin"), read_llama2c_tokenizer(folder / "tok512.bin")


@torch.no_grad()
def test_stories260k_tells_the_story_it_is_known_for(stories):
    model, tokenizer = stories
    assert sum(p.numel() for p in model.parameters()) == 260_032
    said = model.generate(torch.tensor([[1]]), max_new_tokens=70, do_sample=False)[0, 1:].tolist()
    assert tokenizer.decode(said).startswith(STORY)
    ids = tokenizer.encode(STORY.encode()).tolist()
    assert said[: len(ids)] == ids  # the tokenizer cuts text as the model was taught


@torch.no_grad()
def test_with_a_memory_around_it_it_still_knows_its_stories(stories):
    """A segment that holds the whole story: the memory vectors before it are all that is new."""
    model, tokenizer = stories
    ids = [1, *tokenizer.encode(STORY.encode()).tolist()]
    alone = with_memory(model, "rmt", n_slots=0, segment_length=256)
    session = Session(alone, tokenizer=tokenizer)
    session.read([1])
    assert session.generate(60, temperature=0) == tokenizer.decode(ids[1:61])
    tokens = torch.tensor([ids])
    for system, loss in (("rmt", 1.0), ("armt", 1e-3)):  # a new ARMT is its backbone; a new RMT is near it
        wrapped = with_memory(model, system, n_slots=2, segment_length=256)
        target = torch.tensor([[*ids[1:], -100]])
        with_it, without = (float(m.loss(tokens, target, m.init_state(1))[0]) / len(ids) for m in (wrapped, alone))
        assert with_it - without < loss


def test_a_model_written_by_hand_is_read_back(tmp_path):
    """An untied head, three heads that share a key, and the rows of rotary pairs in transformers' order."""
    D, F, n, H, KV, V, context = 12, 5, 1, 3, 1, 7, 9
    K, generator = D // H, np.random.default_rng(0)
    sizes = [V * D, D * n, n * D * D, n * KV * K * D, n * KV * K * D, n * D * D, D * n, n * F * D, n * D * F, n * F * D, D]
    sizes += [context * K // 2] * 2 + [V * D]
    parts = [generator.normal(size=size).astype("<f4") for size in sizes]
    file = tmp_path / "model.bin"
    file.write_bytes(struct.pack("<7i", D, F, n, H, KV, -V, context) + b"".join(part.tobytes() for part in parts))
    model = load_llama2c(file)
    assert torch.equal(model.lm_head.weight, torch.from_numpy(parts[-1]).view(V, D))
    assert torch.equal(model.model.embed_tokens.weight, torch.from_numpy(parts[0]).view(V, D))
    rows = torch.from_numpy(parts[2]).view(H, K // 2, 2, D)
    found = model.model.layers[0].self_attn.q_proj.weight.view(H, 2, K // 2, D)
    assert torch.equal(found[:, 0], rows[:, :, 0])
    assert torch.equal(found[:, 1], rows[:, :, 1])
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated or of another version"):
        load_llama2c(file)
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match=r"does not begin like a llama2\.c model"):
        load_llama2c(file)
    file.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="too few for the header"):
        load_llama2c(file)
    with pytest.raises(CheckpointError, match="there is no model to read"):
        load_llama2c(tmp_path / "none.bin")
