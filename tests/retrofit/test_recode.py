"""Recoding around a pretrained model that was given a memory: its vectors step down the model's own error."""

import torch
from reading import read
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig

from memseq.models.recode import RecodeConfig
from memseq.models.recoding import FixedStep
from memseq.pretrained import load_pretrained, save_pretrained
from memseq.retrofit import with_memory
from memseq.state import leaf_names

L = 4
LLAMA = LlamaConfig(
    vocab_size=13,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)


def around(alpha):
    torch.manual_seed(0)
    model = with_memory(AutoModelForCausalLM.from_config(LLAMA), "rmt", n_slots=2, segment_length=L)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model = model.double().eval()
    return RecodeConfig(model=model.config, step=FixedStep(alpha=alpha), segment_length=L, leaves=("memory",)).build(model)


def test_the_memory_of_a_pretrained_model_moves_and_reading_in_pieces_changes_nothing(tmp_path):
    recode, ids = around(0.5), torch.randint(13, (2, 15))
    with torch.no_grad():
        whole, end = recode(ids, recode.init_state(2))
        for cuts in (1, [3, 5, 7]):
            assert_close(read(recode, ids, cuts)[0], whole, rtol=1e-9, atol=1e-11)
        plain = read(recode.model, ids, L)[0]
        assert torch.equal(read(around(0.0), ids, L)[0], plain)
        assert_close(whole[:, : 2 * L], plain[:, : 2 * L], rtol=1e-9, atol=1e-11)  # a first segment reads no memory that could move
        assert float((whole - plain)[:, 2 * L :].abs().amax(-1).min()) > 1e-6
        save_pretrained(recode, tmp_path)
        assert torch.equal(load_pretrained(tmp_path)(ids, recode.init_state(2))[0], whole)
    assert [leaf_names(end.before)[i] for i in recode.moving] == ["memory"]
    slope = recode.slope(ids[:, :L], end.before, ids[:, 1 : L + 1])
    small = around(1e-3 / float(slope.gradient[0].norm()))
    assert bool((small.slope(ids[:, :L], small.moved(end.before, slope), ids[:, 1 : L + 1]).error < slope.error).all())
