"""Our models in transformers' `generate`: batches, caches, beams, and going on."""

import copy
import os

import pytest
import torch
from torch.testing import assert_close

os.environ["HF_HUB_OFFLINE"] = "1"


from causal_lms import MODELS, PROMPTS, V, built, greedy, padded

import memseq
from memseq.errors import InputError
from memseq.retrofit import MemseqCache


@pytest.mark.parametrize("side", ["left", "right"])
def test_generating_in_a_batch_is_generating_alone(hf, side):
    out = hf.generate(**padded(PROMPTS, side), max_new_tokens=9, do_sample=False)
    for row, prompt in enumerate(PROMPTS):
        assert out[row, -9:].tolist() == greedy(hf, prompt)


@pytest.mark.parametrize(
    ("side", "how"),
    [
        ("left", {"do_sample": False}),
        ("right", {"do_sample": True, "top_k": 20}),
        ("left", {"do_sample": False, "num_beams": 3}),
        ("right", {"do_sample": True, "num_beams": 2}),
        ("left", {"do_sample": True, "num_return_sequences": 3}),
        ("right", {"do_sample": False, "num_beams": 4, "num_return_sequences": 2}),
    ],
    ids=str,
)
def test_generating_with_the_cache_is_generating_without(hf, side, how):
    results = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        out = hf.generate(
            **padded(PROMPTS, side), max_new_tokens=7, use_cache=use_cache, return_dict_in_generate=True, output_logits=True, **how
        )
        results.append(out)
    assert results[0].sequences.tolist() == results[1].sequences.tolist()
    assert_close(torch.stack(results[0].logits), torch.stack(results[1].logits), rtol=1e-5, atol=1e-5)  # float32 in generate
    assert isinstance(results[0].past_key_values, MemseqCache)


@pytest.mark.parametrize("side", ["left", "right"])
def test_going_on_with_all_tokens_or_with_new_ones_only(hf, side):
    n, more = 6, [[50, 51, 52], [60, 61, 62], [70, 71, 72]]
    batch = padded(PROMPTS, side)
    first = MemseqCache()
    out = hf.generate(**batch, past_key_values=first, max_new_tokens=n, do_sample=False)
    news = [out[row, -1:].tolist() + extra for row, extra in enumerate(more)]  # the last token has not been read yet
    expected = [greedy(hf, prompt + out[row, -n:].tolist() + extra) for row, (prompt, extra) in enumerate(zip(PROMPTS, more, strict=True))]
    width = out.shape[1] + 3

    every = torch.cat([out, torch.tensor(more)], 1)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, n + 3, dtype=torch.long)], 1)
    total = [len(p) + n + 3 + 8 for p in PROMPTS]  # the ninth new token is not read
    ways = {
        "all tokens, with their mask": (every, {"attention_mask": mask}),
        "all tokens, padded anew": (None, padded([p + out[row, -n:].tolist() + more[row] for row, p in enumerate(PROMPTS)], "left")),
        "new tokens": (torch.tensor(news), {}),
        "new tokens, with their mask": (torch.tensor(news), {"attention_mask": torch.ones(3, 4, dtype=torch.long)}),
        "new tokens, with the mask of all": (torch.tensor(news), {"attention_mask": mask}),
    }
    for how, (inputs, kwargs) in ways.items():
        cache = first.fork()
        again = hf.generate(inputs, past_key_values=cache, max_new_tokens=9, do_sample=False, **kwargs)
        assert again[:, -9:].tolist() == expected, how
        assert cache.stream.history.seen.tolist() == total, how
        assert again.shape[1] == (width if "all tokens, with" in how else kwargs["input_ids"].shape[1] if inputs is None else 4) + 9
    assert first.stream.history.seen.tolist() == [len(p) + n - 1 for p in PROMPTS]  # a fork leaves its parent as it was


def test_going_on_without_padding_needs_no_mask(hf):
    cache = MemseqCache()
    prompt = PROMPTS[2]
    out = hf.generate(torch.tensor([prompt]), past_key_values=cache, max_new_tokens=5, do_sample=False)
    expected = greedy(hf, out[0].tolist() + [9, 9])
    again = hf.generate(torch.cat([out, torch.tensor([[9, 9]])], 1), past_key_values=cache.fork(), max_new_tokens=9, do_sample=False)
    assert again[0, -9:].tolist() == expected
    again = hf.generate(torch.cat([out[:, -1:], torch.tensor([[9, 9]])], 1), past_key_values=cache, max_new_tokens=9, do_sample=False)
    assert again[0, -9:].tolist() == expected


@pytest.mark.parametrize("how", [{"num_beams": 3, "do_sample": False}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_beams_and_several_samples_fork_a_given_cache(hf, how):
    batch = padded(PROMPTS)
    cache = MemseqCache()
    start = hf.generate(**batch, past_key_values=cache, max_new_tokens=3, do_sample=False)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 3, dtype=torch.long)], 1)
    torch.manual_seed(5)
    expected = hf.generate(start, attention_mask=mask, max_new_tokens=5, **how)
    torch.manual_seed(5)
    assert hf.generate(start, attention_mask=mask, past_key_values=cache, max_new_tokens=5, **how).tolist() == expected.tolist()


def test_no_token_is_read_twice_by_mistake(hf):
    cache = MemseqCache()
    out = hf.generate(torch.tensor([[1, 2, 3], [4, 5, 6]]), past_key_values=cache, max_new_tokens=2, do_sample=False)
    with pytest.raises(InputError, match=r"prompts \[0\] begin with what the cache has read and the others do not"):
        hf.generate(torch.stack([out[0], torch.flip(out[1], [0])]), past_key_values=cache, max_new_tokens=2)
    with pytest.raises(InputError, match="the cache has read all 4 tokens of prompt 0; give at least one that it has not read"):
        hf.generate(out[:, :4], past_key_values=cache, max_new_tokens=2)


def test_a_state_from_elsewhere_goes_on_in_generate(hf, tmp_path):
    tokens = torch.tensor([PROMPTS[0] + PROMPTS[2]])
    state = hf.model.advance(tokens[:, :9], hf.model.init_state(1))
    memseq.save_state(state, tmp_path / "state.safetensors", model=hf.model)
    cache = MemseqCache(memseq.load_state(tmp_path / "state.safetensors", hf.model))
    out = hf.generate(tokens[:, 9:], past_key_values=cache, max_new_tokens=9, do_sample=False)
    assert out[0, -9:].tolist() == greedy(hf, tokens[0].tolist())


@pytest.mark.parametrize("hf", [name for name in MODELS if name != "attention"], indirect=True)
def test_what_is_held_is_constant(hf):
    held = []
    for length in (40, 200):
        cache = MemseqCache()
        hf.generate(torch.randint(0, V, (1, length)), past_key_values=cache, max_new_tokens=9, do_sample=False)  # reads length + 8
        held.append(cache.state_bytes())
    assert held[0] == held[1]


def test_copies_of_a_cache_go_their_own_ways(hf):
    cache = MemseqCache()
    hf(torch.tensor([PROMPTS[0]]), past_key_values=cache)
    twin = copy.deepcopy(MemseqCache(memseq.detach(cache.state)))
    before = [t.clone() for t in memseq.tensors(twin.state)]
    hf(torch.tensor([PROMPTS[2]]), past_key_values=cache)
    assert_close(memseq.tensors(twin.state), before, rtol=0, atol=0)
    assert twin.fork(3).layers[0].batch_size == 3
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.state is None


def test_prefill_in_chunks_is_the_same(hf):
    assert greedy(hf, PROMPTS[2], prefill_chunk_size=3) == greedy(hf, PROMPTS[2])


def test_rows_that_ended_read_no_padding():
    hf = built("memformer")
    hf.config.pad_token_id = hf.generation_config.pad_token_id = V  # past the vocabulary
    stop = greedy(hf, PROMPTS[0], 3)[-1]
    cache = MemseqCache()
    out = hf.generate(**padded(PROMPTS), past_key_values=cache, max_new_tokens=9, do_sample=False, eos_token_id=stop)
    written = out[:, len(PROMPTS[2]) :] != V
    assert len(set(written.sum(1).tolist())) > 1  # some rows ended early, and are filled up
    read = written[:, :-1].sum(1).tolist()  # all but the last column
    assert cache.stream.history.seen.tolist() == [len(p) + n for p, n in zip(PROMPTS, read, strict=True)]
