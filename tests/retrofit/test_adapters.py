"""A memory around a pretrained model: what learns, what is saved, and that replay is exact whatever is frozen."""

import copy
import json

import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MambaConfig

import memseq
from memseq.errors import CheckpointError, ConfigError
from memseq.retrofit import MemseqForCausalLM, add_lora, freeze_backbone, load_adapter, save_adapter, with_memory
from memseq.state import state_bytes, tensors
from memseq.streams import Session
from memseq.training import Segment, StreamCell, replay_backward

V, L = 13, 4
WIDE = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = LlamaConfig(**WIDE, num_key_value_heads=1, tie_word_embeddings=True)
SYSTEMS = {"rmt": {"n_slots": 2, "segment_length": L}, "armt": {"n_slots": 2, "segment_length": L, "key_size": 3}}
LORA = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}


def hub(config=LLAMA):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def generic(model):
    """No weight zero by design."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def wrapped(system="rmt", config=LLAMA):
    return generic(with_memory(hub(config), system, **SYSTEMS[system]))


def window(n, rows=2):
    """n segments; the second row begins a document at the third."""
    tokens = torch.randint(V, (n, rows, L + 1))
    reset = [torch.tensor([t == 0, t in (0, 2)]) for t in range(n)]
    return [Segment(t[:, :-1], t[:, 1:], r) for t, r in zip(tokens, reset, strict=True)]


def by_bptt(model, segments):
    cell, state, total = StreamCell(model), model.init_state(2), 0.0
    for segment in segments:
        loss, state = cell.loss(segment, state)
        total = total + loss
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


CASES = [("llama", system, learns) for system in SYSTEMS for learns in ("everything", "memory", "lora")]


@pytest.mark.parametrize(("family", "system", "learns"), [*CASES, ("gpt2", "armt", "lora"), ("gpt_neox", "rmt", "lora")])
def test_replay_is_full_bptt_whatever_is_frozen(family, system, learns):
    gpt2 = GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    config = {"llama": LLAMA, "gpt2": gpt2, "gpt_neox": GPTNeoXConfig(**WIDE)}
    model = wrapped(system, config[family])
    if learns == "memory":
        freeze_backbone(model)
    if learns == "lora":
        add_lora(model, LoraConfig(r=2, target_modules=LORA[family], lora_dropout=0.1, fan_in_fan_out=family == "gpt2"))
        generic(model)
    model = model.double()  # in evaluation mode: no dropout; with dropout the law is proven in tests/contract
    segments = window(5)
    wanted = by_bptt(copy.deepcopy(model), segments)
    replay_backward(StreamCell(model), segments, model.init_state(2))
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    found = {name: p.grad for name, p in model.named_parameters()}
    top = max(float(g.abs().max()) for g in wanted.values() if g is not None)
    for name in found:
        assert (found[name] is None) == (wanted[name] is None), name
        if found[name] is not None:
            assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-9 * top)
    memory = [name for name in learning if not name.startswith("backbone.")]
    assert memory
    assert all(found[name] is not None for name in memory)
    if learns == "memory":
        assert learning == memory
    if learns == "lora":
        assert all(".lora_" in name for name in set(learning) - set(memory))
        assert any(".lora_" in name for name in learning)


def test_replay_with_dropout_inside_a_pretrained_model_is_bptt():
    config = GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.2, attn_pdrop=0.2, embd_pdrop=0.2)
    model = wrapped("rmt", config).double().train()
    add_lora(model, LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.2, fan_in_fan_out=True))
    generic(model.double())
    segments, twin = window(4), copy.deepcopy(model)
    generators = []  # replay meets every segment with the generators of the first pass: so does this BPTT

    class Noted(StreamCell):
        def advance(self, segment, state):
            generators.append(torch.get_rng_state())
            return super().advance(segment, state)

        def loss(self, segment, state):
            if len(generators) < len(segments):
                generators.append(torch.get_rng_state())
            return super().loss(segment, state)

    cell = Noted(model)
    replay_backward(cell, segments, model.init_state(2))
    total, state, plain = 0.0, twin.init_state(2), StreamCell(twin)
    for segment, generator in zip(segments, generators, strict=True):
        torch.set_rng_state(generator)
        loss, state = plain.loss(segment, state)
        total = total + loss
    total.backward()
    for (name, p), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if other.grad is not None:
            assert_close(p.grad, other.grad, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_data_parallel_engines_wrap_the_model_with_its_hooks(engine, one_process):
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    model = wrapped("armt").double()
    segments, twin = window(4), copy.deepcopy(model)
    wanted = by_bptt(twin, segments)
    cell, state = StreamCell(model), model.init_state(2)  # before an engine takes the weights apart
    if engine == "fsdp2":
        for layer in model.backbone.reader.layers:
            fully_shard(layer)
        fully_shard(cell)
    replay_backward(DistributedDataParallel(cell, find_unused_parameters=True) if engine == "ddp" else cell, segments, state)
    for name, p in model.named_parameters():
        found = p.grad.full_tensor() if engine == "fsdp2" and p.grad is not None else p.grad
        if wanted[name] is not None:
            assert_close(found, wanted[name], rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("system", SYSTEMS)
def test_without_memory_it_is_the_pretrained_model_segment_by_segment(system):
    """RMT without slots, and a new ARMT whose W_v is zero, say in every segment what the model says of that segment."""
    model = with_memory(hub(), system, **SYSTEMS[system] | ({"n_slots": 0} if system == "rmt" else {}))
    tokens = torch.randint(V, (2, 3 * L))
    logits, _ = model(tokens, model.init_state(2))
    for i in range(3):
        piece = tokens[:, i * L : (i + 1) * L]
        assert_close(logits[:, i * L : (i + 1) * L], hub()(piece).logits)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_saved_model_is_read_by_both_sides(system, lora, tmp_path):
    model = wrapped(system)
    if lora:
        add_lora(model, LoraConfig(r=2, target_modules=["q_proj"]))
        generic(model)
    tokens = torch.randint(V, (2, 11))
    wanted = model(tokens, model.init_state(2))[0]
    memseq.save(model, tmp_path / "ours")
    assert torch.equal(memseq.load(tmp_path / "ours")(tokens, model.init_state(2))[0], wanted)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded(tokens).logits, wanted)
    loaded.save_pretrained(tmp_path / "theirs")
    assert torch.equal(memseq.load(tmp_path / "theirs")(tokens, model.init_state(2))[0], wanted)


@pytest.mark.parametrize("learns", ["memory", "lora", "everything"])
def test_an_adapter_holds_what_learns_and_no_more(learns, tmp_path):
    model = with_memory(hub(), "rmt", **SYSTEMS["rmt"])
    if learns == "memory":
        freeze_backbone(model)
    if learns == "lora":
        add_lora(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_alpha=7))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    save_adapter(model, tmp_path)
    from safetensors.torch import load_file

    held = load_file(tmp_path / "adapter.safetensors")
    assert set(held) == {name for name, p in model.named_parameters() if p.requires_grad}
    if learns != "everything":
        assert sum(t.numel() for t in held.values()) < 0.2 * sum(p.numel() for p in model.parameters())
    back = load_adapter(tmp_path, hub())
    assert back.config == model.config
    tokens = torch.randint(V, (2, 11))
    assert torch.equal(back(tokens, back.init_state(2))[0], model(tokens, model.init_state(2))[0])
    assert {n for n, p in back.named_parameters() if p.requires_grad} == set(held)


def test_generation_over_segments_by_session_and_by_transformers():
    model = wrapped("rmt")
    prompt = torch.randint(V, (10,))
    session = Session(model)
    session.read(prompt)
    said = session.generate(9, temperature=0)
    tokens = prompt.tolist()
    for _ in range(9):  # the definition: everything is read anew for every token
        tokens.append(int(model(torch.tensor([tokens]), model.init_state(1))[0][0, -1].argmax()))
    assert said == tokens[10:]
    made = MemseqForCausalLM.of(model).generate(prompt[None], max_new_tokens=9, do_sample=False)
    assert made[0, 10:].tolist() == said


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_stream_holds_as_much_after_many_segments_as_after_one(system):
    model = wrapped(system)
    with torch.no_grad():
        state = model.advance(torch.randint(V, (1, L)), model.init_state(1))
        held, shapes = state_bytes(state), [t.shape for t in tensors(state)]
        for _ in range(3):
            state = model.advance(torch.randint(V, (1, 25 * L)), state)
            assert state_bytes(state) == held
            assert [t.shape for t in tensors(state)] == shapes


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_vocabulary_of_the_model_inside_can_be_resized(system):
    model = MemseqForCausalLM.of(wrapped(system))
    tokens = torch.randint(V, (1, 11))
    before = model(tokens).logits
    model.resize_token_embeddings(V + 3)
    assert model.config.vocab_size == model.model.vocab_size == V + 3
    after = model(torch.cat([tokens, torch.tensor([[V + 1]])], dim=1)).logits
    assert_close(after[:, :11, :V], before)


def test_mamba_takes_a_memory_too():
    mamba = MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4)
    for system, settings in SYSTEMS.items():
        model = generic(with_memory(hub(mamba), system, **settings))
        tokens = torch.randint(V, (2, 11))
        whole, state = model(tokens, model.init_state(2))
        pieces, other = [], model.init_state(2)
        for token in tokens.T:
            y, other = model.step(token, other)
            pieces.append(y)
        assert_close(torch.stack(pieces, dim=1), whole, rtol=1e-4, atol=1e-4)
        for a, b in zip(tensors(other), tensors(state), strict=True):
            assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learns", ["memory", "lora"])
def test_hmt_is_wrapped_trained_and_saved_like_its_kin(learns, tmp_path):
    """The recall of vectors, a frozen or adapted backbone: replay is BPTT, an adapter comes back, pieces read like the whole."""
    settings = {"segment_length": L, "n_kept": 3, "n_sensory": 2}
    model = with_memory(hub(), "hmt", **settings)
    assert model.config.feed == "normed"
    if learns == "memory":
        freeze_backbone(model)
    else:
        add_lora(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p) * p.requires_grad)
    save_adapter(model, tmp_path)
    back = load_adapter(tmp_path, hub())
    assert back.config == model.config
    assert {n for n, p in back.named_parameters() if p.requires_grad} == {n for n, p in model.named_parameters() if p.requires_grad}
    tokens = torch.randint(V, (2, 11))
    whole, _ = model(tokens, model.init_state(2))
    assert torch.equal(back(tokens, back.init_state(2))[0], whole)
    first, state = model(tokens[:, :6], model.init_state(2))
    assert_close(torch.cat([first, model(tokens[:, 6:], state)[0]], dim=1), whole, rtol=1e-4, atol=1e-5)

    model = model.double()
    segments = window(5)
    wanted = by_bptt(copy.deepcopy(model), segments)
    replay_backward(StreamCell(model), segments, model.init_state(2))
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    top = max(float(g.abs().max()) for g in wanted.values() if g is not None)
    for name, grad in found.items():
        assert_close(grad, wanted[name], rtol=1e-9, atol=1e-9 * top, msg=lambda text, name=name: f"{name}: {text}")
    assert all(found[name].abs().max() > 0 for name in ("query.weight", "key.weight", "prompt", "initial", "gain"))


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ConfigError, match="wraps a causal language model of transformers, got Linear"):
        with_memory(torch.nn.Linear(2, 2))
    model = wrapped()
    freeze_backbone(model)
    save_adapter(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"another model: it was trained with num_hidden_layers=2, this model has 1"):
        load_adapter(tmp_path, hub(LlamaConfig(**WIDE | {"num_hidden_layers": 1}, num_key_value_heads=1, tie_word_embeddings=True)))
    header = json.loads((tmp_path / "adapter.json").read_text())
    header["model"]["n_slots"] = 3
    (tmp_path / "adapter.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=r"initial of shape \[2, 16\], the config makes it \[3, 16\]"):
        load_adapter(tmp_path, hub())
    (tmp_path / "adapter.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not one that save_adapter wrote"):
        load_adapter(tmp_path, hub())
    with pytest.raises(CheckpointError, match=r"adapter\.json is missing"):
        load_adapter(tmp_path / "elsewhere", hub())
    add_lora(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="has a LoRA adapter already"):
        add_lora(model, LoraConfig(r=2, target_modules=["q_proj"]))


def test_an_adapter_may_be_told_by_the_fields_of_its_config():
    fields = {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_alpha": 7}
    by_config, by_fields = wrapped(), wrapped()
    add_lora(by_config, LoraConfig(**fields))
    add_lora(by_fields, fields)
    assert by_fields.config == by_config.config
