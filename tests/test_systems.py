"""The one list, and configs as typed JSON."""

import json
import pkgutil
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import pytest

from memseq import configs, systems
from memseq.errors import ConfigError
from memseq.layers.slots import SlotsConfig
from memseq.memories.gru import BeforeReset, GRUConfig
from memseq.memories.lstm import LSTMConfig, Peephole, Zoneout
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.models.presets import PAPER_SHAPES, SIZES, preset, systems_with_presets
from memseq.models.stack import StackConfig

WINDOW = SlidingWindowConfig(d_model=8, n_heads=2, window=3)


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    d_model: int
    inner: Any = None
    rates: tuple[float, ...] = (0.5, 0.25)


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(systems, "_registered", {})
    systems.register("own", OwnConfig)


def there_and_back(config):
    return configs.from_dict(json.loads(json.dumps(configs.to_dict(config))))


@pytest.mark.parametrize("stem", systems.SYSTEMS)
def test_every_row_names_what_exists(stem):
    row = systems.SYSTEMS[stem]
    assert row.stem == stem
    assert row.about
    assert len(row.about) <= 100
    assert not row.about.endswith(".")
    if row.config is None:
        assert row.kind == "method"
        return
    module, name = row.config
    config = getattr(import_module(module), name)
    assert systems.config_class(stem) is config
    assert systems.stem_of(config) == stem
    assert row.kind == {"memories": "memory", "models": "model", "retrofit": "backbone"}[module.split(".")[1]]
    assert config.__dataclass_params__.frozen
    assert all(f.kw_only for f in fields(config))


def test_every_config_of_a_memory_or_model_is_in_the_list():
    listed = {row.config for row in systems.SYSTEMS.values()}
    for room in ("memories", "models"):
        for module in pkgutil.iter_modules(import_module(f"memseq.{room}").__path__, f"memseq.{room}."):
            for name, value in vars(import_module(module.name)).items():
                if name.endswith("Config") and value.__module__ == module.name:
                    assert (module.name, name) in listed, f"add a row for {module.name}.{name}"


@pytest.mark.parametrize("system", systems_with_presets())
@pytest.mark.parametrize("size", SIZES)
def test_presets_go_to_json_and_back(system, size):
    config = preset(system, size)
    assert there_and_back(config) == config


@pytest.mark.parametrize("shape", PAPER_SHAPES)
def test_shapes_of_the_papers_go_to_json_and_back(shape):
    assert there_and_back(PAPER_SHAPES[shape]()) == PAPER_SHAPES[shape]()


def test_nested_tuples_parts_and_variants_go_to_json_and_back():
    deep = StackConfig(
        vocab_size=5,
        d_model=8,
        layers=(
            (WINDOW, LSTMConfig(d_model=8, cell=Zoneout(cell=Peephole(forget_bias=2.0), rates=(0.1, 0.2)))),
            GRUConfig(d_model=8, cell=BeforeReset()),
            (SegmentAttentionConfig(d_model=8, n_heads=1),),
        ),
    )
    assert there_and_back(deep) == deep
    slots = SlotsConfig(d_model=8, n_heads=2, radius=1.0)
    memformer = MemformerLMConfig(vocab_size=5, d_model=8, layers=(WINDOW, (WINDOW, WINDOW)), slots=slots, memory="per_layer")
    written = configs.to_dict(memformer)
    assert there_and_back(memformer) == memformer
    assert written["type"] == "memformer_lm"
    assert written["layers"][1][0]["type"] == "sliding_window"
    assert "type" not in written["slots"]  # the field says what it is
    assert set(written) == {"type", *(f.name for f in fields(memformer))}  # defaults too: they may change, a saved model may not


def test_keys_that_are_left_out_take_their_defaults():
    assert configs.from_dict({"type": "sliding_window", "d_model": 8, "window": 3, "n_heads": 2}) == WINDOW


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"type": "sliding_widow", "d_model": 8}, "no config has the type 'sliding_widow'; did you mean 'sliding_window'?"),
        ({"type": "replay"}, "no config has the type 'replay'"),
        ({"type": "sliding_window", "d_model": 8, "windw": 4}, "sliding_window has no key 'windw'; did you mean 'window'?"),
        ({"type": "sliding_window"}, "sliding_window lacks the key 'd_model'"),
        ({"type": "sliding_window", "d_model": 8, "window": "4"}, "sliding_window.window must be int, got '4'"),
        ({"type": "sliding_window", "d_model": 8.5}, "sliding_window.d_model must be int, got 8.5"),
        ({"type": "gru", "d_model": 8, "dropout": True}, "gru.dropout must be float, got True"),
        ({"type": "gru", "d_model": 8, "hidden_size": "x"}, "gru.hidden_size must be int or null, got 'x'"),
        ({"d_model": 8}, "a config is a dictionary whose 'type' names a system"),
        ([1, 2], "a config is a dictionary whose 'type' names a system, got list"),
        (
            {"type": "stack", "vocab_size": 5, "d_model": 8, "layers": [[{"type": "sliding_window", "d_model": 8, "heads": 1}]]},
            "sliding_window has no key 'heads'; did you mean 'n_heads'?",
        ),
        (
            {"type": "memformer_lm", "vocab_size": 5, "d_model": 8, "layers": [], "slots": {"d_model": 8, "n_slot": 3}},
            "memformer_lm.slots has no key 'n_slot'; did you mean 'n_slots'?",
        ),
        ({"type": "sliding_window", "d_model": 8, "n_heads": 3}, "d_model=8 cannot be split into n_heads=3"),
    ],
    ids=str,
)
def test_errors_name_the_key_and_the_nearest(values, said):
    with pytest.raises(ConfigError) as error:
        configs.from_dict(values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_of_ones_own(own):
    config = OwnConfig(d_model=8, inner=(OwnConfig(d_model=4), WINDOW))
    assert there_and_back(config) == config
    assert configs.to_dict(config)["type"] == "own"
    systems.register("own", OwnConfig)  # twice the same is the same
    with pytest.raises(
        ConfigError, match=r"the stem 'gru' already names memseq\.memories\.gru\.GRUConfig; register OwnConfig under another one"
    ):
        systems.register("gru", OwnConfig)
    with pytest.raises(ConfigError, match=r"the stem 'own' already names .*OwnConfig"):
        systems.register("own", SlidingWindowConfig)
    with pytest.raises(ConfigError, match="object is no dataclass"):
        systems.register("thing", object)


def test_what_has_no_stem_says_how_to_get_one():
    with pytest.raises(ConfigError, match=r"OwnConfig has no stem.*memseq\.systems\.register\('my_stem', OwnConfig\)"):
        configs.to_dict(OwnConfig(d_model=8))


def test_what_cannot_be_written_is_named(own):
    with pytest.raises(ConfigError, match=r"OwnConfig\.inner\[1\] holds function .* which cannot be written to a file"):
        configs.to_dict(OwnConfig(d_model=8, inner=(1, there_and_back)))


def test_every_system_is_in_one_family():
    named = [row.stem for family in systems.families().values() for row in family]
    assert sorted(named) == sorted(systems.SYSTEMS), "name a new system in _FAMILIES"


def test_every_citation_is_bibtex():
    cited = {key for row in systems.SYSTEMS.values() for key in row.cites}
    assert cited <= set(systems.papers())
    assert set(systems.papers()) - cited == {"memseq"}  # no entry that nobody cites
    for key, paper in systems.papers().items():
        assert paper.bibtex.startswith("@")
        assert f"{{{key}," in paper.bibtex
        assert paper.bibtex.count("{") == paper.bibtex.count("}")
        assert paper.authors
        assert 1980 <= paper.year <= 2030
        assert paper.arxiv is None or paper.arxiv.replace(".", "").isdigit()
    assert systems.cite("memformer").count("@") == 1
    assert "2010.06891" in systems.cite("replay")
    assert "{memseq," in systems.cite("stack")
    with pytest.raises(ConfigError, match="there is no system 'memfromer'; did you mean 'memformer"):
        systems.cite("memfromer")
