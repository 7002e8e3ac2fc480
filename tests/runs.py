"""Short runs of `memseq.training.loop` on one sentence, and what they left."""

import json

import numpy as np
import torch

from memseq.layers.slots import SlotsConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.training.lanes import TokenDocuments
from memseq.training.loop import TrainingConfig, train
from memseq.training.optim import AdamWConfig, WarmupCosine

__all__ = ["CONFIG", "TEXT", "lines", "model", "repeatable", "run", "same"]

TEXT = TokenDocuments([np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * n, dtype=np.uint8) for n in (3, 5, 2, 7, 4, 6)])
CONFIG = TrainingConfig(
    steps=12,
    batch_size=3,
    segment_length=8,
    horizon=4,
    optimizer=AdamWConfig(lr=5e-3),
    rate=WarmupCosine(warmup=4),
    dtype="float32",
    log_every=1,
    save_every=5,
)


def model(dropout=0.1, seed=0):
    torch.manual_seed(seed)
    layer = SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=8)
    slots = SlotsConfig(d_model=16, n_heads=2, n_slots=4, segment_length=8)
    return MemformerLMConfig(vocab_size=256, d_model=16, layers=(layer,) * 2, slots=slots, dropout=dropout).build()


def run(out, config=CONFIG, net=None, **options):
    net = net or model()
    return net, train(net, config.lanes(TEXT), config, out, quiet=True, **options)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def repeatable(out):
    """The log without what a clock says, and without how large an empty buffer happens to lie in memory."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "state_bytes")} for line in lines(out)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
