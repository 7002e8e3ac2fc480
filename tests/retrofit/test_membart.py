"""MemBART around a small BART of transformers: what it computes, that it begins as BART, and that it is used like its kin."""

import copy
import math

import pytest
import torch
from peft import LoraConfig
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BartConfig, BartForConditionalGeneration, LlamaConfig

import memseq
from memseq.errors import ConfigError, InputError, TrainingError
from memseq.layers.dual_stream import both_streams, seen_by_both
from memseq.retrofit import add_lora, freeze_backbone, load_adapter, save_adapter, with_memory
from memseq.state import choose, select, state_bytes, tensors
from memseq.streams import Session
from memseq.training import Segment, StreamCell, replay_backward

V, D, L, N = 13, 8, 4, 3
HALVES = {f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 12), ("attention_heads", 2))}
SMALL = {"vocab_size": V, "d_model": D, "max_position_embeddings": 16, "dropout": 0.0, "init_std": 0.3, **HALVES}
REPLY = {"do_sample": False, "max_new_tokens": L, "forced_eos_token_id": None}


def bart(**changes):
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**SMALL | changes))
    with torch.no_grad():
        model.final_logits_bias.normal_()
    return model.double().eval()


def wrapped(n_slots=N, generic=True, **changes):
    model = with_memory(bart(**changes), "membart", n_slots=n_slots, segment_length=L, bias_std=0.5)
    if generic:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return model.double()  # slots of a model in float64 are float64


def tokens(rows, n, seed=1):
    return torch.randint(V, (rows, n), generator=torch.Generator().manual_seed(seed))


def written_out(model, turn, slots):
    """The sheet of equations for one row, slot by slot and query by query: M_t [N, D] and x [n, D]."""
    w = dict(model.named_parameters())
    heads, size = 2, D // 2

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * w[name + ".weight"] + w[name + ".bias"]

    encoder = "backbone.model.model.encoder."
    places = torch.arange(len(turn)) + 2
    x = norm(w["backbone.model.model.shared.weight"][turn] + w[encoder + "embed_positions.weight"][places], encoder + "layernorm_embedding")
    old = m = norm(slots + w["bias"], "norm")
    for i in range(2):
        sides = [(m, f"slot_layers.{i}."), (x, f"{encoder}layers.{i}.")]
        q, k, v = (
            torch.cat([linear(y, f"{name}self_attn.{part}_proj") for y, name in sides]).view(-1, heads, size) for part in ("q", "k", "v")
        )
        o = torch.zeros_like(q)
        for a in range(len(q)):
            sees = [b for b in range(len(q)) if a >= len(m) or b >= len(m) or a == b]
            for h in range(heads):
                weights = torch.softmax(torch.stack([q[a, h] @ k[b, h] for b in sees]) / math.sqrt(size), dim=0)
                o[a, h] = sum(weight * v[b, h] for weight, b in zip(weights, sees, strict=True))
        made = []
        for (y, name), part in zip(sides, o.flatten(1).split([len(m), len(x)]), strict=True):
            y = norm(y + linear(part, name + "self_attn.out_proj"), name + "self_attn_layer_norm")
            up = linear(y, name + "fc1")
            up = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
            made.append(norm(y + linear(up, name + "fc2"), name + "final_layer_norm"))
        m, x = made
    hidden = linear(m, "gate.0")
    share = torch.sigmoid(linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), "gate.2"))
    return share * m + (1 - share) * old, x


def test_turns_are_the_equations_written_out_and_the_decoder_reads_slots_and_tokens():
    model = wrapped()
    dialogue, reply = [tokens(2, n, seed=n) for n in (4, 2, 3)], tokens(2, 3, seed=9)
    state = model.init_state(2)
    for turn in dialogue:
        state = model.read_source(turn, state)
    first = model.predict_first(state)
    rest, _ = model(reply, state)
    for row in range(2):
        slots = torch.zeros(N, D, dtype=torch.float64)
        for turn in dialogue:
            slots, x = written_out(model, turn[row], slots)
        assert_close(state.slots[row], slots, rtol=1e-11, atol=1e-12)
        inputs = torch.cat([torch.tensor([2]), reply[row]])[None]
        said = model.backbone.model(encoder_outputs=(torch.cat([slots, x])[None],), decoder_input_ids=inputs).logits[0]
        assert_close(torch.cat([first[row, None], rest[row]]), said, rtol=1e-10, atol=1e-11)


def test_without_slots_it_is_the_pretrained_model():
    plain, model = bart(), wrapped(n_slots=0, generic=False)
    source, target = tokens(2, L), tokens(2, L, seed=2)
    state = model.read_source(source, model.init_state(2))
    logits = torch.cat([model.predict_first(state)[:, None], model(target[:, :-1], state)[0]], dim=1)
    inputs = torch.cat([torch.full((2, 1), 2), target[:, :-1]], dim=1)
    wanted = plain(input_ids=source, decoder_input_ids=inputs).logits
    assert_close(logits, wanted, rtol=1e-10, atol=1e-11)
    total, count, _ = model.target_loss(target, state)
    assert_close(total, F.cross_entropy(wanted.flatten(0, 1), target.flatten(), reduction="sum"), rtol=1e-10, atol=1e-11)
    assert count == target.numel()


def test_the_token_stream_is_the_encoder_where_it_sees_no_slot_and_slots_begin_as_copies():
    model = wrapped(generic=False)
    turn = tokens(2, L)
    x, slots = model.backbone.embed_source(turn), torch.randn(2, N, D, dtype=torch.float64)
    mask = seen_by_both(N, L, None, x.device).clone()
    mask[..., N:, :N] = False
    m, y = both_streams(model.backbone.encoder_layers, model.slot_layers, slots, x, mask, noisy=False)
    assert_close(y, bart().model.encoder(input_ids=turn).last_hidden_state, rtol=1e-11, atol=1e-12)
    one = both_streams(model.backbone.encoder_layers, model.backbone.encoder_layers, slots, x, mask, noisy=False)[0]
    assert_close(m, one, rtol=0, atol=0)
    assert all(p.data_ptr() != q.data_ptr() for p in model.slot_layers.parameters() for q in model.backbone.parameters())


def test_a_slot_meets_the_others_only_through_tokens():
    """In the first layer a slot changes no other; only after the tokens have read it, does a second layer carry it over."""
    model = wrapped()
    x, slots = model.backbone.embed_source(tokens(1, L)), torch.randn(1, N, D, dtype=torch.float64)
    other = slots.clone()
    other[:, 0] += 1
    mask = seen_by_both(N, L, None, x.device)
    for depth, apart in ((1, True), (2, False)):
        layers, own = model.backbone.encoder_layers[:depth], model.slot_layers[:depth]
        a, b = (both_streams(layers, own, s, x, mask, noisy=False)[0] for s in (slots, other))
        assert not torch.equal(a[:, 0], b[:, 0])
        assert torch.equal(a[:, 1:], b[:, 1:]) == apart


def test_the_gate_begins_with_weights_as_large_as_asked():
    small, large = (with_memory(bart(), "membart", n_slots=N, segment_length=L, gate_std=std, gate_bias=-1.0) for std in (0.02, 0.5))
    for layer, bias in ((0, 0.0), (2, -1.0)):
        torch.testing.assert_close(large.gate[layer].weight, 25 * small.gate[layer].weight)
        assert bool((large.gate[layer].bias == bias).all())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_gate_keeps_the_old_or_takes_the_new(share):
    model = wrapped()
    with torch.no_grad():
        model.gate[2].weight.zero_()
        model.gate[2].bias.fill_(1e4 if share else -1e4)
        model.bias.zero_()
        model.norm.weight.fill_(1.0)
        model.norm.bias.zero_()
    slots = torch.randn(2, N, D, dtype=torch.float64)
    start = model.init_state(2)._replace(slots=slots)
    once = model.read_source(tokens(2, L), start)
    twice = model.read_source(tokens(2, L, seed=2), once)
    if share:
        other = model.read_source(tokens(2, L, seed=3), start)
        assert not torch.equal(once.slots, other.slots)
    else:
        assert_close(once.slots, F.layer_norm(slots, (D,)), rtol=1e-10, atol=1e-10)
        assert_close(twice.slots, once.slots, rtol=1e-4, atol=1e-4)  # a norm of a norm, but for its eps of 1e-5


def test_padding_changes_nothing_and_an_empty_turn_keeps_a_row():
    model = wrapped()
    before = model.read_source(tokens(3, L), model.init_state(3))
    turns, lengths = [tokens(1, n, seed=n) for n in (2, 4)], torch.tensor([2, 0, 4])
    padded = torch.full((3, L), 5)
    padded[0, :2], padded[2] = turns[0][0], turns[1][0]
    state = model.read_source(padded, before, lengths)
    padded[0, 2:], padded[1] = 7, 9
    again = model.read_source(padded, before, lengths)
    assert all(torch.equal(a, b) for a, b in zip(tensors(again), tensors(state), strict=True))
    for row, turn in ((0, turns[0]), (2, turns[1])):
        alone = model.read_source(turn, select(before, torch.tensor([row])))
        for a, b in zip(tensors(select(state, torch.tensor([row]))), tensors(alone), strict=True):
            assert_close(a, b, rtol=1e-10, atol=1e-11)
        assert_close(model.predict_first(state)[row], model.predict_first(alone)[0], rtol=1e-10, atol=1e-11)
    kept = torch.tensor([1])
    assert all(torch.equal(a, b) for a, b in zip(tensors(select(state, kept)), tensors(select(before, kept)), strict=True))
    none = wrapped(n_slots=0).read_source(padded, wrapped(n_slots=0).init_state(3), lengths)
    assert all(bool(t.isfinite().all()) for t in tensors(none))


def test_a_row_that_begins_anew_is_a_new_dialogue():
    model = wrapped()
    state = model.read_source(tokens(2, L), model.init_state(2))
    state = choose(torch.tensor([False, True]), model.init_state(2), state)
    after = model.read_source(tokens(2, L, seed=2), state)
    alone = model.read_source(tokens(2, L, seed=2)[1:], model.init_state(1))
    assert_close(after.slots[1:], alone.slots, rtol=1e-11, atol=1e-12)


def test_replies_are_those_of_the_written_out_search_and_beams_share_the_memory():
    model = wrapped()
    state = model.read_source(tokens(2, 2, seed=3), model.read_source(tokens(2, L), model.init_state(2)))
    said = model.reply(state, **REPLY)
    for row in range(2):
        reply, one = [], select(state, torch.tensor([row]))
        for _ in range(said.shape[1] - 1):
            logits = model.predict_first(one) if not reply else model(torch.tensor([reply]), one)[0][:, -1]
            reply.append(int(logits.argmax()))
            if reply[-1] == 2:
                break
        assert said[row, 1 : 1 + len(reply)].tolist() == reply
    assert model.reply(state, num_beams=3, **REPLY).shape[0] == 2


def window(n):
    made = tokens(n, 2 * (L + 1), seed=4).view(n, 2, L + 1)
    return [Segment(t[:, :-1], t[:, 1:], torch.tensor([i == 0, i in (0, 2)])) for i, t in enumerate(made)]


@pytest.mark.parametrize("learns", ["everything", "memory", "lora"])
def test_replay_is_full_bptt_whatever_is_frozen(learns):
    model = wrapped()
    if learns == "memory":
        freeze_backbone(model)
    if learns == "lora":
        add_lora(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1))
        model.double()
    segments, twin = window(5), copy.deepcopy(model)
    cell, state, total = StreamCell(twin), twin.init_state(2), 0.0
    for segment in segments:
        loss, state = cell.loss(segment, state)
        total = total + loss
    total.backward()
    replay_backward(StreamCell(model), segments, model.init_state(2))
    top = max(float(p.grad.abs().max()) for p in twin.parameters() if p.grad is not None)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9 * top, msg=lambda text, name=name: f"{name}: {text}")
    assert model.bias.grad is not None
    assert model.bias.grad.abs().max() > 0


def test_with_dropout_replay_meets_the_same_numbers():
    model = wrapped(dropout=0.3).train()
    segments = window(3)
    state = model.init_state(2)
    torch.manual_seed(5)
    advanced = model.advance(segments[0].tokens, state)
    torch.manual_seed(5)
    read = model.loss(segments[0].tokens, segments[0].targets, state)[2]
    assert all(torch.equal(a, b) for a, b in zip(tensors(advanced), tensors(read), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors(model.init_state(2)), tensors(state), strict=True))


def test_a_turn_costs_the_same_however_many_there_were():
    model = wrapped()
    with torch.no_grad():
        state = model.read_source(tokens(1, L), model.init_state(1))
        held = state_bytes(state)
        for i in range(20):
            state = model.read_source(tokens(1, L, seed=i), state)
    assert state_bytes(state) == held


def test_what_was_saved_is_what_is_loaded(tmp_path):
    model, x = wrapped(), tokens(2, 11)
    wanted = model(x, model.init_state(2))[0]
    memseq.save(model, tmp_path / "whole")
    assert torch.equal(memseq.load(tmp_path / "whole")(x, model.init_state(2))[0], wanted)
    model = wrapped(generic=False)
    add_lora(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p) * p.requires_grad)
    wanted = model(x, model.init_state(2))[0]
    save_adapter(model, tmp_path / "adapter")
    back = load_adapter(tmp_path / "adapter", bart())
    assert back.config == model.config
    assert_close(back(x, back.init_state(2))[0], wanted, rtol=1e-6, atol=1e-6)
    memseq.save(model, tmp_path / "adapted")
    again = memseq.load(tmp_path / "adapted")
    assert_close(again(x, again.init_state(2))[0], wanted, rtol=1e-6, atol=1e-6)


def test_a_model_of_half_precision_keeps_its_slots_in_float32():
    model, x = wrapped(), tokens(2, 3 * L + 1)
    wanted = model(x, model.init_state(2))[1].slots
    half = model.to(torch.bfloat16)
    state = half(x, half.init_state(2))[1]
    assert state.slots.dtype == torch.float32
    assert state.response.keys[0].dtype == torch.bfloat16
    assert (state.slots - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_session_writes_over_segments():
    model, prompt = wrapped(), tokens(1, 6)[0]
    session = Session(model)
    session.read(prompt)
    said, read = session.generate(6, temperature=0), prompt.tolist()
    for _ in range(6):
        read.append(int(model(torch.tensor([read]), model.init_state(1))[0][0, -1].argmax()))
    assert said == read[6:]


def test_what_is_wrong_is_said():
    llama = LlamaConfig(vocab_size=V, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ConfigError, match="must be a BART, got the config of a 'llama'"):
        with_memory(AutoModelForCausalLM.from_config(llama), "membart")
    with pytest.raises(ConfigError, match="has an encoder, and this system wraps a causal language model"):
        with_memory(bart(), "rmt")
    with pytest.raises(ConfigError, match="max_position_embeddings=16 and would read turns of 20"):
        with_memory(bart(), "membart", segment_length=20)
    with pytest.raises(ConfigError, match="drops whole layers"):
        with_memory(bart(encoder_layerdrop=0.1), "membart", segment_length=L)
    with pytest.raises(ConfigError, match="bias_std must be above 0"):
        with_memory(bart(), "membart", segment_length=L, bias_std=0)
    with pytest.raises(ConfigError, match="gate_std must be above 0"):
        with_memory(bart(), "membart", segment_length=L, gate_std=0)
    model = wrapped()
    inside = model(tokens(1, 2), model.init_state(1))[1]
    for use in (lambda: model.read_source(tokens(1, 2), inside), lambda: model.predict_first(inside), lambda: model.reply(inside)):
        with pytest.raises(InputError, match=r"the rows stand \[2\] tokens into one"):
            use()
    with pytest.raises(InputError, match="one length a row"):
        model.read_source(tokens(1, L + 1), model.init_state(1), torch.tensor([2]))
    with pytest.raises(InputError, match="lengths must lie in 0 to 2, got 3 to 3"):
        model.read_source(tokens(1, 2), model.init_state(1), torch.tensor([3]))
    model.train().backbone.model.gradient_checkpointing_enable()
    with pytest.raises(TrainingError, match="gradient checkpointing"):
        model(tokens(1, 2), model.init_state(1))
