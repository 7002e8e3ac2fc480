"""Small models of ours as models of transformers, and batches with padding, for the tests of `memseq.retrofit`."""

import os

import torch
from torch import Tensor

os.environ["HF_HUB_OFFLINE"] = "1"


from memseq.layers.slots import SlotsConfig
from memseq.memories.attention import AttentionConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.models.memformer_encdec import MemformerEncDecConfig
from memseq.models.stack import StackConfig
from memseq.retrofit import MemseqForCausalLM

__all__ = ["MODELS", "PROMPTS", "WINDOW", "D", "V", "built", "greedy", "padded"]

V, D = 256, 16
SLOTS = SlotsConfig(d_model=D, segment_length=4, n_slots=3, n_heads=2, bias_std=0.5)
WINDOW = SlidingWindowConfig(d_model=D, n_heads=2, window=5)
MODELS = {
    "memformer": MemformerLMConfig(vocab_size=V, d_model=D, layers=(WINDOW, WINDOW), slots=SLOTS),
    "encdec": MemformerEncDecConfig(vocab_size=V, d_model=D, n_heads=2, n_encoder_layers=1, n_decoder_layers=1, slots=SLOTS),
    "attention": StackConfig(vocab_size=V, d_model=D, layers=(AttentionConfig(d_model=D, n_heads=2),)),
    "gru": StackConfig(vocab_size=V, d_model=D, layers=(GRUConfig(d_model=D), WINDOW)),
}
PROMPTS = [[104, 101, 108, 108, 111, 32, 119], [97, 98], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


def built(name: str) -> MemseqForCausalLM:
    """A small model in float64 whose distributions are far from flat, so that a wrong token shows."""
    torch.manual_seed(1)
    model = MODELS[name].build().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return MemseqForCausalLM.of(model)


def padded(prompts, side="left", fill=7) -> dict[str, Tensor]:
    """A batch with a mask; the padding is an ordinary token, so that reading it would show."""
    longest = max(map(len, prompts))
    pads = [longest - len(p) for p in prompts]
    if side == "left":
        ids, mask = (
            [[fill] * n + p for n, p in zip(pads, prompts, strict=True)],
            [[0] * n + [1] * len(p) for n, p in zip(pads, prompts, strict=True)],
        )
    elif side == "right":
        ids, mask = (
            [p + [fill] * n for n, p in zip(pads, prompts, strict=True)],
            [[1] * len(p) + [0] * n for n, p in zip(pads, prompts, strict=True)],
        )
    else:  # after the first token
        ids = [p[:1] + [fill] * n + p[1:] for n, p in zip(pads, prompts, strict=True)]
        mask = [[1] + [0] * n + [1] * (len(p) - 1) for n, p in zip(pads, prompts, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def greedy(model, prompt, n=9, **kwargs) -> list[int]:
    return model.generate(torch.tensor([prompt]), max_new_tokens=n, do_sample=False, **kwargs)[0, len(prompt) :].tolist()
