"""Our models as Hugging Face models: what transformers computes is what the law says, to float64."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline

import memseq
from memseq.errors import CheckpointError, ConfigError, InputError, StateError
from memseq.layers.slots import SlotsConfig
from memseq.memories.attention import AttentionConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.models.memformer_encdec import MemformerEncDecConfig
from memseq.models.stack import StackConfig
from memseq.retrofit import MemseqCache, MemseqConfig, MemseqForCausalLM
from memseq.tasks.tokenizers import Bytes

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


@pytest.fixture(params=MODELS)
def hf(request) -> MemseqForCausalLM:
    return built(request.param)


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


# ---------------------------------------------------------------------------------------------------------- generation


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


# ------------------------------------------------------------------------------------------------------------ training

TRAIN = """
import json, os, sys, torch
import memseq
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def train(model, rows, out, per_device):
    arguments = TrainingArguments(
        output_dir=out, per_device_train_batch_size=per_device, max_steps=4, learning_rate=0.3, optim="sgd", lr_scheduler_type="constant",
        max_grad_norm=0.0, report_to=[], save_strategy="no", logging_steps=1, use_cpu=True, disable_tqdm=True, gradient_checkpointing=True,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = InOrder(model=model, args=arguments, train_dataset=data, eval_dataset=data[:4])
    trainer.train()
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    start, rows, out = sys.argv[1:]
    trainer = train(AutoModelForCausalLM.from_pretrained(start), torch.load(rows), out, per_device=2)
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(out)
    if trainer.is_world_process_zero():
        with open(os.path.join(out, "log.json"), "w") as file:
            json.dump({"loss": loss, "world": trainer.args.world_size}, file)
"""


def steps_by_hand(model, rows: Tensor) -> None:
    """Four steps of plain SGD with full back-propagation, on batches of four."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for batch in rows.split(4):
        total, count, _ = model.loss(batch[:, :-1], batch[:, 1:], model.init_state(len(batch)))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()


def test_trainer_takes_the_steps_that_we_would(tmp_path):
    """With gradient checkpointing, over several segments."""
    from types import ModuleType

    script = ModuleType("script")
    exec(TRAIN, script.__dict__)
    model = MODELS["memformer"].build()
    ours, start = copy.deepcopy(model), copy.deepcopy(model)
    rows = torch.randint(0, V, (16, 11))
    script.train(MemseqForCausalLM.of(model), rows, str(tmp_path), per_device=4)
    steps_by_hand(ours, rows)
    assert_close(model.state_dict(), ours.state_dict(), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(model.embedding.weight, start.embedding.weight, atol=1e-4)


def test_trainer_on_two_processes_takes_the_same_steps(tmp_path):
    """One segment only: nothing reads what was written, and data-parallel training must not wait for its gradient."""
    model = MODELS["memformer"].build()
    memseq.save(model, tmp_path / "start")
    rows = torch.randint(0, V, (16, 4))
    torch.save(rows, tmp_path / "rows.pt")
    (tmp_path / "train.py").write_text(TRAIN)
    out = tmp_path / "out"
    out.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "train.py")]
    source = str(Path(memseq.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "start"), str(tmp_path / "rows.pt"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((out / "log.json").read_text())
    assert log["world"] == 2
    steps_by_hand(model, rows)
    trained = memseq.load(out)
    assert_close(trained.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-6)
    batch = rows[:4]
    total, count, _ = model.loss(batch[:, :-1], batch[:, 1:], model.init_state(4))
    assert log["loss"] == pytest.approx(float(total / count), rel=1e-4)


def test_lora_trains_generates_and_merges(hf, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = copy.deepcopy(hf)
    model = get_peft_model(hf, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False))
    model.double()
    x = torch.randint(0, V, (2, 13))
    model(x, labels=x).loss.backward()
    adapters = [name for name, p in model.named_parameters() if p.requires_grad]
    assert adapters
    assert all("lora" in name for name in adapters)
    assert all(p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters() if "lora_B" in name), (
        "an adapter without effect"
    )
    model.eval()
    tuned = model(x).logits
    assert not torch.allclose(tuned, base(x).logits)
    batch = padded(PROMPTS)
    written = model.generate(**batch, max_new_tokens=6, do_sample=False)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base, tmp_path).double()
    assert_close(again(x).logits, tuned, rtol=1e-10, atol=1e-10)
    merged = model.merge_and_unload()
    assert_close(merged(x).logits, tuned, rtol=1e-9, atol=1e-10)
    assert merged.generate(**batch, max_new_tokens=6, do_sample=False).tolist() == written.tolist()


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
    """This file again, in a Python that imports transformers from the folder named."""
    environment = {key: value for key, value in os.environ.items() if key != "MEMSEQ_OLD_TRANSFORMERS"}
    source = str(Path(memseq.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([os.environ["MEMSEQ_OLD_TRANSFORMERS"], source])
    pick = "(memformer and not trainer and not lora) or bytes or pipeline or errors"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", pick, __file__]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
