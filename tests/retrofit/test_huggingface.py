"""Our models as Hugging Face models: what transformers computes is what the law says, to float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

os.environ["HF_HUB_OFFLINE"] = "1"

from causal_lms import PROMPTS, WINDOW, D, V, built, greedy, padded
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline

import memseq
from memseq.errors import CheckpointError, ConfigError, InputError, StateError
from memseq.retrofit import MemseqCache, MemseqConfig, MemseqForCausalLM
from memseq.tasks.tokenizers import Bytes

# ------------------------------------------------------------------------------------------------------------- reading


def test_logits_and_loss_are_the_models(hf):
    x = torch.randint(0, V, (2, 13))
    out = hf(x, labels=x)
    logits, state = hf.model(x, hf.model.init_state(2))
    assert_close(out.logits, logits, rtol=0, atol=1e-12)
    assert_close(out.loss, F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten()), rtol=1e-6, atol=0)
    assert_close(memseq.tensors(out.past_key_values.state), memseq.tensors(state), rtol=0, atol=1e-12)
    assert_close(hf(x, logits_to_keep=3).logits, logits[:, -3:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right", "inside"])
def test_padding_leaves_no_trace(hf, side):
    batch = padded(PROMPTS, side)
    with torch.no_grad():
        out = hf(**batch)
        last = hf(**batch, logits_to_keep=1)
    for row, prompt in enumerate(PROMPTS):
        alone, state = hf.model(torch.tensor([prompt]), hf.model.init_state(1))
        own = batch["attention_mask"][row].bool()
        assert_close(out.logits[row, own], alone[0], rtol=1e-10, atol=1e-12)
        assert_close(last.logits[row, 0], alone[0, -1], rtol=1e-10, atol=1e-12)
        for cache in (out.past_key_values, last.past_key_values):
            kept = memseq.tensors(memseq.select(cache.state, [row]))
            for t, expected in zip(kept, memseq.tensors(state), strict=True):
                if t.shape != expected.shape:  # a store that grows is as long as the longest row's, with zeros behind
                    t = t[:, : expected.shape[1]]
                assert_close(t, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right", "inside"])
@pytest.mark.parametrize("training", [True, False], ids=["rectangle", "ragged"])
def test_loss_and_gradients_with_padding_are_those_without(hf, side, training):
    batch = padded(PROMPTS, side)
    hf.train(training)
    hf.zero_grad()
    items = sum(map(len, PROMPTS)) - len(PROMPTS)
    loss = hf(**batch, labels=batch["input_ids"], num_items_in_batch=items).loss
    loss.backward()
    padded_grads = [p.grad for p in hf.parameters()]
    hf.zero_grad()
    expected = torch.zeros((), dtype=torch.float64)
    for prompt in PROMPTS:
        logits, _ = hf.model(torch.tensor([prompt]), hf.model.init_state(1))
        expected = expected + F.cross_entropy(logits[0, :-1].float(), torch.tensor(prompt[1:]), reduction="sum").double() / items
    expected.backward()
    assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for given, p in zip(padded_grads, hf.parameters(), strict=True):
        assert_close(
            given if given is not None else torch.zeros_like(p), p.grad if p.grad is not None else torch.zeros_like(p), rtol=1e-5, atol=1e-7
        )


def test_a_cache_carries_gradients_and_pieces_change_nothing(hf):
    x = torch.randint(0, V, (2, 14))
    whole = hf(x).logits
    grads = torch.autograd.grad(whole.square().sum(), hf.model.embedding.weight)[0]
    cache = MemseqCache()
    pieces = [hf(piece, past_key_values=cache).logits for piece in x.split([5, 1, 8], dim=1)]
    assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-12)
    assert_close(torch.autograd.grad(torch.cat(pieces, 1).square().sum(), hf.model.embedding.weight)[0], grads, rtol=1e-9, atol=1e-10)
    assert cache.get_seq_length() == 14


def test_gradient_checkpointing_is_the_chain_and_changes_nothing(hf):
    x = torch.randint(0, V, (2, 14))
    hf.train()
    hf(x, labels=x).loss.backward()
    expected = [p.grad.clone() for p in hf.parameters()]
    hf.zero_grad()
    hf.gradient_checkpointing_enable()
    hf(x, labels=x).loss.backward()
    assert_close([p.grad for p in hf.parameters()], expected, rtol=1e-9, atol=1e-12)
    hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ConfigError, match="use_reentrant=True cannot carry a state"):
        hf(x, labels=x)


def test_gradient_checkpointing_keeps_one_segment_alive():
    hf = built("memformer").train()
    alive = {}
    for on in (False, True):
        if on:
            hf.gradient_checkpointing_enable()
        for T in (32, 128):
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
                h, _ = hf._features(torch.randint(0, V, (1, T)), hf.model.init_state(1))
            alive[on, T] = sum(kept)
    whole, chain = alive[False, 128] - alive[False, 32], alive[True, 128] - alive[True, 32]
    assert chain < 0.1 * whole  # what 24 more segments keep for the backward pass


# ------------------------------------------------------------------------------------------------------ files and sizes


def test_a_directory_of_either_side_loads_in_the_other(hf, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    memseq.save(hf.model, ours, tokenizer=Bytes(), extra={"step": 7})
    loaded = AutoModelForCausalLM.from_pretrained(ours)
    assert isinstance(loaded, MemseqForCausalLM)
    assert not loaded.training
    assert loaded.config.extra == {"step": 7}
    loaded.save_pretrained(theirs)
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    back = memseq.load(theirs)
    x = torch.randint(0, V, (2, 11))
    expected = hf.model(x, hf.model.init_state(2))[0]
    assert torch.equal(back(x, back.init_state(2))[0], expected)
    assert torch.equal(loaded(x).logits, expected)
    assert back.config == hf.model.config


def test_bytes_are_their_own_ids_in_transformers(tmp_path):
    memseq.save(built("gru").model, tmp_path, tokenizer=Bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "naïve Ā \x00 <s> 日本\n\ttabs"
    assert tokenizer(text).input_ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    batch = tokenizer(["a", "abc"], padding=True, return_tensors="pt")
    assert batch.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generate(**batch, max_new_tokens=4, do_sample=False)[0, -4:].tolist() == greedy(loaded, [97], 4)


def test_a_pipeline_writes_text(tmp_path):
    memseq.save(built("memformer").model.float(), tmp_path, tokenizer=Bytes())
    write = pipeline("text-generation", model=str(tmp_path), device="cpu")
    single = [write(p, max_new_tokens=5, do_sample=False)[0]["generated_text"] for p in ("ab", "hello")]
    batch = [r[0]["generated_text"] for r in write(["ab", "hello"], max_new_tokens=5, do_sample=False, batch_size=2)]
    assert single == batch
    assert single[1].startswith("hello")


def test_bfloat16_weights_and_exact_positions(hf, tmp_path):
    memseq.save(hf.model.float(), tmp_path)
    small = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    native = memseq.load(tmp_path, dtype=torch.bfloat16)
    assert small.dtype == torch.bfloat16
    x = torch.randint(0, V, (2, 11))
    assert torch.equal(small(x).logits, native(x, native.init_state(2))[0])
    for (name, a), (_, b) in zip(small.model.named_buffers(), hf.model.named_buffers(), strict=True):
        assert torch.equal(a, b), name  # such as rotary frequencies, which no file holds
    small.save_pretrained(tmp_path / "again")
    assert next(memseq.load(tmp_path / "again").parameters()).dtype == torch.bfloat16


def test_a_new_model_is_initialised_once_and_by_us(hf):
    config = MemseqConfig.of(hf.model.config)
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(4)
    assert_close(model.model.state_dict(), hf.model.config.build().state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [300, 200])
def test_the_vocabulary_can_be_resized(hf, size, tmp_path):
    x = torch.randint(0, 200, (2, 9))
    before = hf(x).logits
    assert hf.resize_token_embeddings(size).num_embeddings == size
    assert_close(hf(x).logits[..., :200], before[..., :200], rtol=0, atol=1e-12)
    hf.save_pretrained(tmp_path)
    assert memseq.load(tmp_path).config.vocab_size == AutoConfig.from_pretrained(tmp_path).vocab_size == size


# -------------------------------------------------------------------------------------------------------------- errors


def test_errors_say_what_to_do(tmp_path):
    hf = built("memformer")
    x = torch.tensor([[1, 2, 3]])
    with pytest.raises(InputError, match="reads token ids: give input_ids"):
        hf(inputs_embeds=torch.zeros(1, 3, D, dtype=torch.float64))
    with pytest.raises(InputError, match="is a MemseqCache, got DynamicCache"):
        hf(x, past_key_values=DynamicCache())
    with pytest.raises(InputError, match=r"attention_mask has shape \[1, 2\], input_ids \[1, 3\]"):
        hf(x, attention_mask=torch.ones(1, 2))
    with pytest.raises(InputError, match="hides every token"):
        hf(x, attention_mask=torch.zeros(1, 3))
    with pytest.raises(InputError, match="prompt 1 is empty"):
        hf.generate(x.repeat(2, 1), attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]), max_new_tokens=2)
    with pytest.raises(InputError, match="token ids must lie in 0 to 255, got 3 to 256"):
        hf(torch.tensor([[3, 256]]))
    cache = MemseqCache()
    hf(x, past_key_values=cache)
    with pytest.raises(StateError, match="the state holds 1 streams and the input 2"):
        hf(x.repeat(2, 1), past_key_values=cache)
    with pytest.raises(InputError, match="cannot forget its last tokens"):
        cache.crop(-1)
    with pytest.raises(InputError, match="not keys and values"):
        cache.update(x, x, 0)
    with pytest.raises(ValueError, match="stateful"):
        hf.generate(x, prompt_lookup_num_tokens=2, max_new_tokens=2)


def test_a_config_of_another_kind_is_refused(tmp_path):
    memseq.save(built("memformer").model, tmp_path)
    file = tmp_path / "config.json"
    good = file.read_text()
    file.write_text(good.replace('"sliding_window"', '"sliding_widow"'))
    with pytest.raises(ConfigError, match="did you mean 'sliding_window'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    file.write_text(good.replace('"memory": "shared"', '"memory": "per_layer"'))
    with pytest.raises(CheckpointError, match="is missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a memory, not a language model"):
        MemseqConfig.of(WINDOW)


@pytest.mark.skipif(
    "MEMSEQ_OLD_TRANSFORMERS" not in os.environ, reason="MEMSEQ_OLD_TRANSFORMERS is not set: a folder with the oldest transformers"
)
def test_the_oldest_transformers():
    """This file and its neighbour again, in a Python that imports transformers from the folder named."""
    environment = {key: value for key, value in os.environ.items() if key != "MEMSEQ_OLD_TRANSFORMERS"}
    source = str(Path(memseq.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([os.environ["MEMSEQ_OLD_TRANSFORMERS"], source])
    pick = "(memformer and not trainer and not lora) or bytes or pipeline or errors"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        pick,
        __file__,
        str(Path(__file__).with_name("test_huggingface_generate.py")),
    ]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
