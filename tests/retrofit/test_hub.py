"""Models of transformers as memories over tokens: reading in pieces changes nothing, whatever their cache is."""

import pytest
import torch

from memseq.errors import CheckpointError, InputError
from memseq.state import fork, leaf_names, select, stack, state_bytes, tensors

transformers = pytest.importorskip("transformers", reason="transformers is not installed; run: pip install 'memseq[hf]'")

from memseq.retrofit.hub import HubModel, load_hub  # noqa: E402 (it needs transformers)

V = 40
SHAPE = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, n_positions=32, n_embd=16, n_layer=2, n_head=2))


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **HEADS))


def mistral():
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SHAPE, **HEADS, sliding_window=5))


def mamba():
    return transformers.MambaForCausalLM(transformers.MambaConfig(**SHAPE, state_size=8))


def mamba2():
    shape = {"state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}
    return transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**SHAPE, **shape))


def recurrent_gemma():
    shape = {**SHAPE, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "lru_width": 16}
    return transformers.RecurrentGemmaForCausalLM(transformers.RecurrentGemmaConfig(**shape, attention_window_size=8))


# what the state is, and whether its size is constant
KINDS = {
    gpt2: ("cache", False),
    llama: ("cache", False),
    mistral: ("cache", False),
    mamba: (None, True),  # pieces of several tokens lose its state in some releases: then token by token
    mamba2: ("cache", True),
    recurrent_gemma: ("tokens", False),  # keeps its state in its modules
}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {build: HubModel(build().float()) for build in KINDS}


@pytest.fixture(params=KINDS, ids=lambda build: build.__name__)
def model(request, models):
    return models[request.param]


def tokens(rows=2, length=19):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read(model, given, splits):
    state, read = model.init_state(len(given)), []
    for piece in given.split(splits, dim=1):
        y, state = model.step(piece[:, 0], state) if piece.shape[1] == 1 else model(piece, state)
        read.append(y[:, None] if y.ndim == 2 else y)
    return torch.cat(read, dim=1), state


@pytest.mark.parametrize("build", KINDS, ids=lambda build: build.__name__)
def test_the_cache_that_keeps_the_law_is_found(build, models):
    how, bounded = KINDS[build]
    assert models[build].how in ((how,) if how else ("cache", "steps"))
    assert models[build].bounded == bounded


def test_reading_in_pieces_changes_nothing(model):
    given = tokens()
    with torch.no_grad():
        expected = model.wrapped(given, use_cache=False).logits
    whole, after = read(model, given, [19])
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    for splits in ([1] * 19, [7, 1, 11], [3] * 6 + [1]):
        y, state = read(model, given, splits)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        assert leaf_names(state) == leaf_names(after)
        for a, b in zip(tensors(state), tensors(after), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_of_different_ages_are_read_together(model):
    given = tokens(3)
    starts = (3, 9, 3)
    state = stack([model(given[i : i + 1, :n], model.init_state(1))[1] for i, n in enumerate(starts)])
    logits, state = model(torch.stack([given[i, n : n + 8] for i, n in enumerate(starts)]), state)
    for i, n in enumerate(starts):
        alone = model.wrapped(given[i : i + 1, : n + 8], use_cache=False).logits[0, -8:]
        torch.testing.assert_close(logits[i], alone, rtol=1e-4, atol=1e-5)
    assert state.position.tolist() == [11, 17, 11]


@torch.no_grad()
def test_the_state_given_is_never_written(model):
    _, state = model(tokens()[:, :6], model.init_state(2))
    before = [t.clone() for t in tensors(state)]
    a = model(tokens()[:, 6:10], state)[0]
    b = model(tokens()[:, 6:10], fork(select(state, [0]), 2))[0]
    assert torch.equal(model(tokens()[:, 6:10], state)[0], a)
    torch.testing.assert_close(b[0], a[0])
    assert all(torch.equal(x, y) for x, y in zip(tensors(state), before, strict=True))


@torch.no_grad()
def test_a_window_holds_a_window(models):
    state, sizes = models[mistral].init_state(1), []
    for token in tokens(1, 30)[0]:
        _, state = models[mistral].step(token[None], state)
        sizes.append(state_bytes(state))
    assert len(set(sizes[4:])) == 1
    assert state.layers[0][0].shape == (1, 4, 1, 8)


def test_a_model_reads_no_further_than_its_positions(models):
    state = models[gpt2].init_state(1)
    with pytest.raises(InputError, match="GPT2LMHeadModel has 32 positions and would read token 33"):
        models[gpt2](tokens(1, 33), state)


@pytest.mark.parametrize("build", [gpt2, llama, mistral], ids=lambda build: build.__name__)
@torch.no_grad()
def test_heads_are_shown_and_silenced(build, models):
    from memseq.recipes.probe_subject import hub_anatomy

    model, given = models[build], tokens(2, 4)
    attention = hub_anatomy(model).attention
    assert attention.heads == [(0, 0), (0, 1), (1, 0), (1, 1)]
    torch.testing.assert_close(attention.weights(given).sum(-1), torch.ones(4, 2))
    whole, after = model(given, model.init_state(2))
    out = attention.projections[1]
    with attention.silenced([(1, 0), (1, 1)]):
        without, _ = model(given, model.init_state(2))
    kept = out.weight.clone()
    out.weight.zero_()
    torch.testing.assert_close(model(given, model.init_state(2))[0], without)
    out.weight.copy_(kept)
    assert torch.equal(model(given, model.init_state(2))[0], whole)
    assert not torch.equal(whole, without)


def test_models_that_show_no_heads_have_none(models):
    from memseq.recipes.probe_subject import hub_anatomy

    assert hub_anatomy(models[mamba2]).attention is None


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(CheckpointError, match="no causal language model that transformers knows"):
        load_hub(tmp_path)
    gpt2().config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a model that transformers cannot load"):
        load_hub(tmp_path)


def test_a_directory_of_transformers_is_probed(tmp_path, capsys):
    from memseq.cli import main
    from memseq.report.combined import opened
    from memseq.tasks.tokenizers import Bytes

    shape = {"vocab_size": 256, "n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).save_pretrained(tmp_path / "gpt2")
    Bytes().save(tmp_path / "gpt2")
    (tmp_path / "text.txt").write_text("".join(f"Line {i} of a TEXT; and {i % 7} again? (yes)\n" for i in range(100)))
    words = [
        "probe",
        str(tmp_path / "gpt2"),
        "recall",
        "text",
        "fidelity",
        "retention",
        "cost",
        "--length",
        "64",
        "--samples",
        "2",
        "--quiet",
    ]
    assert main([*words, "--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]) == 0
    told = opened(tmp_path / "out")
    assert (told["model"]["system"], told["model"]["bounded"], told["model"]["longest"]) == ("GPT2LMHeadModel", False, 128)
    assert told["probes"]["fidelity"]["result"]["layers"] == 2
    assert "of other" not in capsys.readouterr().err
