"""JRT-RNN as a language model: prompts, their loss, and memory replay over what follows."""

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError, InputError
from memseq.memories.base_conv import BaseConvConfig
from memseq.memories.based import BasedConfig
from memseq.memories.jrt_rnn import JRTRNNConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.jrt_rnn import JRTRNNLMConfig, PrefixCell, PrefixSegment, block_pattern
from memseq.models.presets import preset
from memseq.pretrained import load_pretrained, save_pretrained
from memseq.state import select, tensors
from memseq.tasks.masking import mask_tokens
from memseq.training.lanes import Segment
from memseq.training.replay import replay_backward

F64 = torch.float64


def build(**options):
    linear = JRTRNNConfig(d_model=12, n_heads=2, feature_size=3, chunk_size=8)
    window = SlidingWindowConfig(d_model=12, n_heads=2, window=4)
    layers = (BaseConvConfig(d_model=12), linear, (window, linear))
    return JRTRNNLMConfig(vocab_size=19, d_model=12, layers=layers, **options).build().double()


def same(found, wanted):
    assert_close(tensors(found), tensors(wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 5, 100])
def test_a_prefix_is_read_layer_by_layer_in_any_pieces(chunk_size):
    model, tokens = build(), torch.randint(19, (3, 17))
    logits, state = model.read_prefix(tokens, model.init_state(3))
    pieces, after = model.read_prefix(tokens, model.init_state(3), chunk_size=chunk_size)
    assert_close(pieces, logits, rtol=1e-10, atol=1e-12)
    same(after, state)


def test_every_token_of_the_prefix_sees_all_of_it_and_nothing_else():
    model, tokens = build(), torch.randint(19, (1, 20))
    M = 12
    prefix = (torch.arange(20) < M)[None]
    logits, _ = model.read_prefix(tokens, model.init_state(1), prefix)
    for t in range(20):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % 19
        moved = (model.read_prefix(changed, model.init_state(1), prefix)[0] - logits).abs().amax(-1)[0] > 0
        seen = torch.arange(20) >= (0 if t < M else t)
        assert torch.equal(moved, seen), t


def test_what_follows_the_prefix_is_an_ordinary_stream():
    model, tokens = build(), torch.randint(19, (2, 20))
    lengths = torch.tensor([[7], [13]])
    at_once, end = model.read_prefix(tokens, model.init_state(2), torch.arange(20) < lengths)
    for row, M in enumerate([7, 13]):
        logits, state = model.read_prefix(tokens[row : row + 1, :M], model.init_state(1))
        assert_close(at_once[row : row + 1, :M], logits, rtol=1e-10, atol=1e-12)
        for t in range(M, 20):
            y, state = model.step(tokens[row : row + 1, t], state)
            assert_close(at_once[row, t], y[0], rtol=1e-10, atol=1e-12)
        same(select(end, [row]), state)


def test_prompts_of_any_lengths_are_read_each_as_alone():
    model = build()
    prompts = [torch.randint(19, (n,)).tolist() for n in (5, 9, 5, 1)]
    logits, state = model.read_prompts(prompts)
    for row, prompt in enumerate(prompts):
        alone, after = model.read_prefix(torch.tensor([prompt]), model.init_state(1))
        assert_close(logits[row], alone[0, -1], rtol=1e-10, atol=1e-12)
        same(select(state, [row]), after)


def window(model, *, seed=0):
    """A prefix with hidden tokens, and three segments that follow it; the loss is L_next + 0.25 L_hidden, both means."""
    g = torch.Generator().manual_seed(seed)
    masked = mask_tokens(torch.randint(1, 19, (2, 10), generator=g), mask_token=0, seed=seed, rate=0.3)
    rest = torch.randint(1, 19, (2, 13), generator=g)
    tokens, targets = rest[:, :-1], rest[:, 1:]
    hidden = int((masked.labels != -100).sum())
    begins = torch.ones(2, dtype=torch.bool)
    segments = [PrefixSegment(*masked, begins, 0.25 * targets.numel() / hidden)]
    segments += [Segment(x, y, ~begins) for x, y in zip(tokens.split(5, dim=1), targets.split(5, dim=1), strict=True)]
    return masked, tokens, targets, segments


def test_replay_over_the_window_is_full_bptt():
    model = build().train()
    masked, tokens, targets, segments = window(model)
    cell = PrefixCell(model)
    total, state = 0.0, model.init_state(2)
    for segment in segments:
        loss, state = cell.loss(segment, state)
        total = total + loss
    wanted = torch.autograd.grad(total, list(model.parameters()))
    replayed = replay_backward(cell, segments, model.init_state(2))
    assert_close(replayed.loss, total.detach(), rtol=1e-10, atol=0)
    for parameter, w in zip(model.parameters(), wanted, strict=True):
        assert_close(parameter.grad, w, rtol=1e-8, atol=1e-10)
    hidden, n_hidden, after = model.prefix_loss(masked.inputs, masked.labels, model.init_state(2))
    follow, n_follow, _ = model.loss(tokens, targets, after)
    assert_close(total / n_follow, follow / n_follow + 0.25 * hidden / n_hidden, rtol=1e-10, atol=0)


def test_both_passes_of_replay_draw_the_same_numbers():
    model = build(dropout=0.2).train()
    cell, state = PrefixCell(model), model.init_state(2)
    for segment in window(model)[3]:
        torch.manual_seed(1)
        _, after = cell.loss(segment, state)
        drawn = torch.get_rng_state()
        torch.manual_seed(1)
        assert_close(tensors(cell.advance(segment, state)), tensors(after), rtol=1e-12, atol=1e-12)
        assert torch.equal(torch.get_rng_state(), drawn)
        state = after


def test_the_loss_of_the_prefix_is_the_cross_entropy_of_the_hidden_tokens():
    model = build()
    masked, *_ = window(model)
    total, count, _ = model.prefix_loss(masked.inputs, masked.labels, model.init_state(2))
    logits, _ = model.read_prefix(masked.inputs, model.init_state(2))
    hidden = masked.labels != -100
    expected = -logits.log_softmax(-1)[hidden].gather(-1, masked.labels[hidden][:, None]).sum()
    assert int(count) == int(hidden.sum())
    assert_close(total, expected, rtol=1e-10, atol=0)


def test_the_published_patterns_of_blocks():
    kinds = {JRTRNNConfig: "P", SlidingWindowConfig: "W", BaseConvConfig: ".", BasedConfig: "B"}
    small = "".join(kinds[type(layer)] for layer in block_pattern(1024))
    assert small == ".PW..." + "PW..." * 3 + "PW..."
    large = block_pattern(1792, n_layers=36, linear_at=(1, 6, 11, 16, 21, 27, 33))
    assert [i for i, layer in enumerate(large) if type(layer) is JRTRNNConfig] == [1, 6, 11, 16, 21, 27, 33]
    assert "".join(kinds[type(layer)] for layer in block_pattern(64, n_layers=3, linear_at=(1,), n_heads=4, linear=BasedConfig)) == ".BW"
    with pytest.raises(ConfigError, match="beyond the n_layers=4"):
        block_pattern(64, n_layers=4, linear_at=(4,), n_heads=4)


def test_a_preset_is_built_saved_and_loaded(tmp_path):
    model = preset("jrt_rnn_lm", "tiny", vocab_size=31).build()
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    tokens = torch.randint(31, (1, 9))
    assert_close(loaded.read_prefix(tokens, loaded.init_state(1))[0], model.read_prefix(tokens, model.init_state(1))[0], rtol=0, atol=0)


def test_errors_say_what_was_given():
    model = build()
    with pytest.raises(InputError, match=r"\[1, 4\], got \[1, 3\]"):
        model.read_prefix(torch.zeros(1, 4, dtype=torch.int64), model.init_state(1), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="at least one token"):
        model.read_prompts([[1], []])
    with pytest.raises(ConfigError, match="encodes a prefix"):
        JRTRNNLMConfig(vocab_size=19, d_model=12, layers=(BasedConfig(d_model=12, n_heads=2),)).build()
