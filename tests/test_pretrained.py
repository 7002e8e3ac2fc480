"""Models on disk: what is loaded is what was saved, bit for bit, and what is wrong is said in one line."""

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import memseq
from memseq import pretrained, systems
from memseq.errors import CheckpointError, ConfigError
from memseq.models.language_model import LanguageModel
from memseq.models.presets import preset, systems_with_presets
from memseq.pretrained import load_pretrained, read_config, save_pretrained
from memseq.tasks.tokenizers import Bytes, load_tokenizer

SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "segment_length": 4, "n_slots": 3, "window": 4}


def small(system="memformer"):
    return preset(system, **SMALL).build().eval()


def said(directory) -> str:
    with pytest.raises(CheckpointError) as error:
        load_pretrained(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("system", systems_with_presets())
def test_a_loaded_model_gives_the_same_next_token(system, dtype, tmp_path):
    model = small(system).to(dtype)
    save_pretrained(model, tmp_path / "here")
    loaded = load_pretrained(tmp_path / "here")
    assert loaded.config == model.config
    assert not loaded.training
    x = torch.randint(0, 256, (2, 9))
    state, again = model.advance(x, model.init_state(2)), loaded.advance(x, loaded.init_state(2))
    assert_close(memseq.tensors(again), memseq.tensors(state), rtol=0, atol=0)
    assert torch.equal(loaded.step(x[:, 0], again)[0], model.step(x[:, 0], state)[0])


def test_a_memory_alone_can_be_saved(tmp_path):
    memory = preset("memformer", **SMALL).layers[0].build()
    save_pretrained(memory, tmp_path)
    x = torch.randn(1, 5, 16)
    assert torch.equal(load_pretrained(tmp_path)(x, memory.init_state(1))[0], memory(x, memory.init_state(1))[0])
    assert read_config(tmp_path)["architectures"] is None


def test_dtype_device_and_extra(tmp_path):
    save_pretrained(small(), tmp_path, tokenizer=Bytes(), extra={"step": 3, "tokens": [1, 2]})
    assert {p.dtype for p in load_pretrained(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.device.type for p in load_pretrained(tmp_path, device="cpu").parameters()} == {"cpu"}
    header = read_config(tmp_path)
    assert header["extra"] == {"step": 3, "tokens": [1, 2]}
    assert (header["model_type"], header["vocab_size"], header["hidden_size"], header["dtype"]) == ("memseq", 256, 16, "float32")
    assert isinstance(load_tokenizer(tmp_path), Bytes)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    save_pretrained(small(), tmp_path)
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    load_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected)


@dataclass(frozen=True, kw_only=True)
class TwiceConfig:
    vocab_size: int = 7
    d_model: int = 3

    def build(self):
        return Twice(self)


class Twice(LanguageModel[tuple[()]]):
    """The embedding is the head's weight too, under a name of its own; one buffer is saved and one is not."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("kept", torch.full((2,), 5.0))
        self.register_buffer("derived", torch.arange(config.d_model, dtype=torch.float64), persistent=False)

    def init_state(self, batch_size):
        return ()

    def features(self, tokens, state):
        return self.embedding(tokens) * self.derived.to(self.embedding.weight.dtype) + self.kept.sum(), state

    def head(self, h):
        return self.out(h)


@pytest.fixture
def twice(monkeypatch):
    monkeypatch.setattr(systems, "_registered", {})
    systems.register("twice", TwiceConfig)
    return TwiceConfig().build()


def test_shared_weights_are_stored_once_and_stay_shared(twice, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        twice.kept.fill_(2.0)
    save_pretrained(twice, tmp_path / "ours")
    assert sorted(load_file(tmp_path / "ours" / "model.safetensors")) == ["model.embedding.weight", "model.kept"]
    x = torch.tensor([[1, 2, 3]])
    expected = twice(x, ())[0]
    loaded = load_pretrained(tmp_path / "ours")
    assert loaded.out.weight is loaded.embedding.weight
    assert torch.equal(loaded(x, ())[0], expected)

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert theirs.model.out.weight is theirs.model.embedding.weight
    assert torch.equal(theirs(x).logits, expected)
    theirs.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (tmp_path / "theirs" / "model.safetensors").read_bytes()
    assert torch.equal(load_pretrained(tmp_path / "theirs")(x, ())[0], expected)


def test_weights_in_several_files(tmp_path):
    from transformers import AutoModelForCausalLM

    model = small()
    save_pretrained(model, tmp_path / "one")
    AutoModelForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert not (tmp_path / "many" / "model.safetensors").exists()
    assert_close(load_pretrained(tmp_path / "many").state_dict(), model.state_dict(), rtol=0, atol=0)
    next((tmp_path / "many").glob("model-00002*")).unlink()
    assert "holds a config but no model-00002" in said(tmp_path / "many")


def test_a_tokenizer_of_transformers_can_be_saved_too(tmp_path):
    from transformers import AutoTokenizer

    save_pretrained(small(), tmp_path / "first", tokenizer=Bytes())
    save_pretrained(small(), tmp_path / "second", tokenizer=AutoTokenizer.from_pretrained(tmp_path / "first"))
    assert AutoTokenizer.from_pretrained(tmp_path / "second")("né").input_ids == list("né".encode())


# -------------------------------------------------------------------------------------------------------------- errors


def test_a_directory_that_is_none_of_ours(tmp_path):
    assert "there is no directory" in said(tmp_path / "nowhere")
    assert "holds no config.json" in said(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    assert "describes a model of type 'llama', not 'memseq'; load it with transformers" in said(tmp_path)
    config.write_text('{"model_type": "mem')
    assert "is not readable JSON" in said(tmp_path)
    config.write_bytes(b"\xff\xfe\x00")
    assert "is not readable JSON" in said(tmp_path)
    config.write_text('{"model_type": "memseq"}')
    assert "has no config under 'model'" in said(tmp_path)
    config.write_text("[1]")
    assert "describes a model of type None" in said(tmp_path)


def test_a_config_with_an_unknown_key_or_type(tmp_path):
    save_pretrained(small(), tmp_path)
    config = tmp_path / "config.json"
    good = config.read_text()
    config.write_text(good.replace('"n_slots"', '"n_slotz"'))
    assert "config.json: memformer_lm.slots has no key 'n_slotz'; did you mean 'n_slots'?" in said(tmp_path)
    config.write_text(good.replace('"memformer_lm"', '"memformer_ln"'))
    assert "no config has the type 'memformer_ln'; did you mean 'memformer_lm'?" in said(tmp_path)
    config.write_text(good.replace('"n_heads": 2', '"n_heads": 3'))
    assert "cannot be split into n_heads=3" in said(tmp_path)


def test_damaged_and_foreign_weights(tmp_path):
    model = small()
    save_pretrained(model, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:7], whole[:200], whole[:-5], b"PK\x03\x04" + whole[4:]):
        weights.write_bytes(damaged)
        assert "is not a readable safetensors file" in said(tmp_path)
    weights.unlink()
    assert "holds a config but no model.safetensors; copy the whole directory" in said(tmp_path)

    from safetensors.torch import save_file

    tensors = pretrained.weights_of(model)
    save_file({"model.norm.weight": tensors["model.norm.weight"], "lm_head.weight": torch.zeros(2)}, weights)
    assert "it holds 'lm_head.weight', which the model has not (1 unknown and" in said(tmp_path)
    save_file({name: t for name, t in tensors.items() if name != "model.norm.bias"}, weights)
    assert "it lacks 'norm.bias' (0 unknown and 1 missing of" in said(tmp_path)
    save_file({**tensors, "model.norm.bias": torch.zeros(17)}, weights)
    assert "norm.bias has shape [17], the config makes it [16]" in said(tmp_path)


def test_a_config_without_a_stem_leaves_no_trace(tmp_path):
    model = TwiceConfig().build()
    with pytest.raises(ConfigError, match="TwiceConfig has no stem"):
        save_pretrained(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_full_disk_leaves_the_old_model(after, tmp_path, monkeypatch):
    old = small()
    save_pretrained(old, tmp_path, tokenizer=Bytes())
    (tmp_path / "log.jsonl").write_text("a line of the user's")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    written, write = [], pretrained._write

    def full(file: Path, data: bytes) -> None:
        if len(written) == after:
            file.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        write(file, data)

    monkeypatch.setattr(pretrained, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(small("gru"), tmp_path, tokenizer=Bytes())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert load_pretrained(tmp_path).config == old.config


def test_saving_again_replaces_the_model_and_nothing_else(tmp_path):
    save_pretrained(small("gru"), tmp_path)
    (tmp_path / "log.jsonl").write_text("a line of the user's")
    save_pretrained(small(), tmp_path)
    assert load_pretrained(tmp_path).config == small().config
    assert (tmp_path / "log.jsonl").read_text() == "a line of the user's"
    assert json.loads((tmp_path / "config.json").read_text())["model"]["type"] == "memformer_lm"
    assert not list(tmp_path.glob(".*"))
