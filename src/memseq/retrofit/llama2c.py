"""A model in the file format of llama2.c as a `LlamaForCausalLM`: small pretrained models, such as stories260K, in one file.

Source of the format: github.com/karpathy/llama2.c, `export.py` version 0. Little-endian; seven int32 (width, hidden width, layers, heads,
key/value heads, vocabulary, context; a negative vocabulary says that the head is not the embedding), then float32 matrices
[out, in], each kind stacked over the layers. Its rotary pairs are neighbours (2i, 2i + 1); those of transformers are (i, i + K/2):
rows of W_q and W_k change places. Its tokenizer is `tasks/llama2c.py`.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memseq.errors import CheckpointError, MissingExtraError

try:
    from transformers import LlamaConfig, LlamaForCausalLM
except ModuleNotFoundError:
    raise MissingExtraError("transformers", extra="hf") from None

__all__ = ["load_llama2c"]

HEADER = 7


def load_llama2c(path: str | os.PathLike[str]) -> LlamaForCausalLM:
    """The model in `path`, in evaluation mode. Raises `CheckpointError` where the file is missing or of another size than it says."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"there is no model to read at {path} ({error.strerror}); give a .bin file of llama2.c") from None
    if len(data) < 4 * HEADER:
        raise CheckpointError(f"{path} holds {len(data)} bytes, too few for the header of a llama2.c model")
    D, F, n_layers, H, KV, vocab, context = (int(n) for n in np.frombuffer(data, dtype="<i4", count=HEADER))
    tied, V = vocab > 0, abs(vocab)
    if min(D, F, n_layers, H, KV, V, context) < 1 or D % H or H % KV:
        raise CheckpointError(f"{path} does not begin like a llama2.c model: its header is {(D, F, n_layers, H, KV, vocab, context)}")
    K = D // H
    shapes: list[tuple[str, tuple[int, ...]]] = [("embedding", (V, D)), ("attention_norm", (n_layers, D)), ("q", (n_layers, D, D))]
    shapes += [("k", (n_layers, KV * K, D)), ("v", (n_layers, KV * K, D)), ("o", (n_layers, D, D)), ("ff_norm", (n_layers, D))]
    shapes += [("gate", (n_layers, F, D)), ("down", (n_layers, D, F)), ("up", (n_layers, F, D)), ("norm", (D,))]
    shapes += [("cosines", (context, K // 2)), ("sines", (context, K // 2))] + ([] if tied else [("head", (V, D))])
    wanted = 4 * (HEADER + sum(int(np.prod(shape)) for _, shape in shapes))
    if len(data) != wanted:
        raise CheckpointError(f"{path} holds {len(data)} bytes and its header asks for {wanted}; it is truncated or of another version")
    parts, at = {}, 4 * HEADER
    for name, shape in shapes:
        count = int(np.prod(shape))
        parts[name] = torch.from_numpy(np.frombuffer(data, dtype="<f4", count=count, offset=at).astype(np.float32)).reshape(shape)
        at += 4 * count
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=n_layers,
        num_attention_heads=H,
        num_key_value_heads=KV,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    weights = {"model.embed_tokens.weight": parts["embedding"], "model.norm.weight": parts["norm"]}
    weights["lm_head.weight"] = parts["embedding"] if tied else parts["head"]
    for i in range(n_layers):
        layer = {"input_layernorm": parts["attention_norm"][i], "post_attention_layernorm": parts["ff_norm"][i]}
        layer |= {"self_attn.q_proj": _halves(parts["q"][i], H), "self_attn.k_proj": _halves(parts["k"][i], KV)}
        layer |= {"self_attn.v_proj": parts["v"][i], "self_attn.o_proj": parts["o"][i]}
        layer |= {"mlp.gate_proj": parts["gate"][i], "mlp.up_proj": parts["up"][i], "mlp.down_proj": parts["down"][i]}
        weights |= {f"model.layers.{i}.{name}.weight": t for name, t in layer.items()}
    model.load_state_dict(weights)
    return model.eval()


def _halves(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of each head from neighbouring pairs to two halves."""
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).reshape(weight.shape)
