"""The one list of systems: a stem names a config class, a kind and its papers.

`memseq list`, `memseq cite` and the tables of the README and of the docs are read from here, and files on disk name their configs by it
(`memseq.configs`). To add a system, add one row below, its name to a family, and its paper to `papers.bib`. A config class of your own
takes part after `register("my_memory", MyConfig)`. Nothing is imported before it is used.
"""

import re
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib import import_module, resources
from typing import Literal

from memseq.errors import ConfigError, nearest

__all__ = [
    "SYSTEMS",
    "Paper",
    "System",
    "cite",
    "config_class",
    "families",
    "find",
    "papers",
    "register",
    "stem_of",
]

Kind = Literal["memory", "model", "backbone", "method", "probe", "application"]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One entry of `papers.bib`."""

    key: str
    title: str
    authors: tuple[str, ...]  # family name first
    year: int
    arxiv: str | None
    bibtex: str


@dataclass(frozen=True, kw_only=True)
class System:
    """One row of the list."""

    stem: str
    kind: Kind
    about: str  # one line
    config: tuple[str, str] | None = None  # module and class; None for what has no config, such as a method of training
    cites: tuple[str, ...] = ()  # keys of papers.bib, the source first

    @property
    def papers(self) -> tuple[Paper, ...]:
        """The sources, read from papers.bib."""
        return tuple(papers()[key] for key in self.cites)


def _memory(stem: str, config: str, cites: str, about: str) -> System:
    return System(stem=stem, kind="memory", about=about, config=(f"memseq.memories.{stem}", config), cites=tuple(cites.split()))


def _model(stem: str, module: str, config: str, cites: str, about: str) -> System:
    return System(stem=stem, kind="model", about=about, config=(f"memseq.models.{module}", config), cites=tuple(cites.split()))


def _family(module: str, cites: str, *members: tuple[str, str, str]) -> tuple[System, ...]:
    """Memories of one file: stem, config and what each is."""
    path = f"memseq.memories.{module}"
    return tuple(System(stem=s, kind="memory", about=about, config=(path, config), cites=(cites,)) for s, config, about in members)


_REVIEW = "lipton2015critical"
_MEMFORMER = "wu2022memformer"
_ROWS = (
    _memory("elman", "ElmanConfig", f"elman1990finding {_REVIEW}", "simple recurrent network: the hidden layer feeds itself"),
    _memory("jordan", "JordanConfig", f"jordan1986serial {_REVIEW}", "simple recurrent network: a decaying copy of the output feeds back"),
    _memory("lstm", "LSTMConfig", f"hochreiter1997long gers2000learning {_REVIEW}", "a cell behind input, forget and output gates"),
    _memory("gru", "GRUConfig", f"cho2014learning {_REVIEW}", "one state behind a reset and an update gate"),
    _memory("timescales", "LeakyNetworkConfig", "khajehabdollahi2024emergent", "leaky units, each with a time constant that is trained"),
    _memory(
        "bidirectional",
        "BidirectionalConfig",
        f"schuster1997bidirectional {_REVIEW}",
        "an encoder: one memory reads forwards, one backwards",
    ),
    _memory(
        "look_ahead", "LookAheadConfig", f"zhang2015highway {_REVIEW}", "a bidirectional stream that answers a fixed number of tokens late"
    ),
    _memory(
        "transformer_xl", "TransformerXLConfig", "dai2019transformerxl", "attention to a cache of the last inputs, by relative position"
    ),
    _memory(
        "compressive",
        "CompressiveConfig",
        "rae2020compressive",
        "Transformer-XL whose cache is compressed rather than dropped",
    ),
    _memory(
        "attention", "AttentionConfig", "vaswani2017attention", "causal attention to all that was read: unbounded, the honest baseline"
    ),
    _memory("sliding_window", "SlidingWindowConfig", "beltagy2020longformer", "causal attention to the last tokens of a fixed window"),
    _memory(
        "segment_attention", "SegmentAttentionConfig", "vaswani2017attention", "causal attention inside one segment, nothing beyond it"
    ),
    _memory("memformer", "MemformerConfig", _MEMFORMER, "slots read by cross-attention, written by slot attention once a segment"),
    _memory("based", "BasedConfig", "arora2024simple", "causal linear attention whose features expand the softmax to second order"),
    _memory("base_conv", "BaseConvConfig", "arora2023zoology", "a gated convolution over the last three tokens, the mixer of Based"),
    _memory("jrt_rnn", "JRTRNNConfig", "arora2024just", "linear attention that reads a prefix twice: once to know all of it"),
    _memory("aaren", "AarenConfig", "feng2024attention", "attention by a learned query: a running mean with learned weights"),
    _memory(
        "stable_hadamard", "StableHadamardConfig", "le2024stable", "a matrix whose elements are multiplied by factors that are 1 on average"
    ),
    _memory(
        "gated_deltanet",
        "GatedDeltaNetConfig",
        "yang2025gated yang2024parallelizing schlag2021linear",
        "a matrix that erases what a key retrieves before it writes, and fades by a gate",
    ),
    _memory("gla", "GLAConfig", "yang2024gla", "a matrix whose key channels fade each at a rate the token decides"),
    _memory("hgrn2", "HGRN2Config", "qin2024hgrn2", "a matrix whose channels write as much as they forget"),
    _memory(
        "rwkv6",
        "RWKV6Config",
        "peng2024rwkv6",
        "a matrix that is read before it is written, with a decay per channel that two tokens decide",
    ),
    _memory("kda", "KDAConfig", "kimi2025linear yang2025gated", "Gated DeltaNet whose key channels fade each at its own rate"),
    _memory(
        "rwkv7", "RWKV7Config", "peng2025rwkv7", "a matrix that removes under one key and writes under another, with a decay per channel"
    ),
    _memory(
        "linear_attention", "LinearAttentionConfig", "katharopoulos2020transformers", "attention by features: the past is one matrix a head"
    ),
    _memory("retnet", "RetNetConfig", "sun2023retentive", "a matrix a head that fades at a fixed rate, with rotary positions"),
    _memory(
        "deltanet",
        "DeltaNetConfig",
        "yang2024parallelizing schlag2021linear",
        "a matrix that replaces what stands under a key instead of adding to it",
    ),
    _memory("mamba2", "Mamba2Config", "dao2024transformers", "selective state space: a matrix a head, kept by a scalar the token decides"),
    _memory("titans", "TitansConfig", "behrouz2024titans", "a network that learns keys and values while it reads, by gradient steps"),
    _memory("mom", "MoMConfig", "du2025mom", "several matrices, of which a router lets each token read and write a few"),
    _memory(
        "keyed_mom",
        "KeyedMoMConfig",
        "du2025mom",
        "several matrices; a token is written where its key leads and reads where its query leads",
    ),
    _memory(
        "stuffed_mamba", "StuffedMambaConfig", "chen2024stuffed", "three repairs of a trained memory whose state collapses on long streams"
    ),
    *_family(
        "atlas",
        "behrouz2025atlas",
        ("atlas", "AtlasConfig", "a network that descends on its last few tokens at once, with momentum made orthogonal"),
        ("omeganet", "OmegaNetConfig", "a network that descends on its last few tokens at once"),
        ("dot", "DotConfig", "descent on the last few tokens, on features of the exponential to the third degree"),
        ("deep_transformers", "DeepTransformersConfig", "Hebbian writes to a deep memory, on features of the exponential"),
    ),
    *_family(
        "miras",
        "behrouz2025miras",
        ("miras", "MirasConfig", "a memory by four choices: what it is, what it minimises, what keeps the past, how it steps"),
        ("moneta", "MonetaConfig", "a network that minimises an l_3 loss while it reads, its weights kept at an l_4 norm"),
        ("yaad", "YaadConfig", "a network that minimises a Huber loss while it reads: outliers are written no harder"),
        ("memora", "MemoraConfig", "a network trained while it reads whose weights are shares, so that none can grow"),
    ),
    _model("stack", "stack", "StackConfig", "", "language model of blocks, each of one or more memories and a feedforward"),
    _model("memformer_lm", "memformer", "MemformerLMConfig", _MEMFORMER, "Memformer, causal: blocks that share one memory of slots"),
    _model(
        "memformer_encdec",
        "memformer_encdec",
        "MemformerEncDecConfig",
        _MEMFORMER,
        "Memformer as published: a segment is encoded, the next decoded",
    ),
    _model(
        "jrt_rnn_lm", "jrt_rnn", "JRTRNNLMConfig", "arora2024just arora2024simple", "a prompt read twice, layer by layer, then a stream"
    ),
    System(stem="jrt_prompt", kind="method", about="a context read twice, the question between: for any model", cites=("arora2024just",)),
    _model(
        "memmamba",
        "memmamba",
        "MemMambaConfig",
        "wang2025memmamba",
        "Mamba-2 that takes notes of tokens and looks into them, its own and those below",
    ),
    _model(
        "recoding",
        "recoding",
        "RecodingConfig",
        "ulmer2021recoding",
        "an LSTM whose states step down the gradient of its own error while it reads",
    ),
    _model(
        "recode",
        "recode",
        "RecodeConfig",
        "ulmer2021recoding",
        "around any language model: its state steps down the gradient of its own error while it reads",
    ),
    _model(
        "hmt",
        "hmt",
        "HMTConfig",
        "he2025hmt",
        "a vector a segment, and before each the one recalled by what it is about; around any backbone",
    ),
    _model("lamemo", "lamemo", "LaMemoConfig", "ji2022lamemo", "kept tokens look ahead of themselves and are refreshed with every segment"),
    _model(
        "rmt",
        "rmt",
        "RMTConfig",
        "bulatov2022recurrent bulatov2023scaling",
        "memory vectors around every segment, the last become the next first",
    ),
    _model("armt", "armt", "ARMTConfig", "rodkin2024associative", "RMT with an associative matrix at every layer, written by a delta rule"),
    _model(
        "membart",
        "membart",
        "MemBARTConfig",
        "wu2024stateful wu2022memformer",
        "slots that run beside the tokens through a pretrained encoder, and stay from turn to turn",
    ),
    System(
        stem="bart",
        kind="backbone",
        about="a BART of transformers, whose encoder membart reads layer by layer",
        config=("memseq.retrofit.encoder_decoder", "BartBackboneConfig"),
    ),
    System(
        stem="huggingface",
        kind="backbone",
        about="any causal language model of transformers, inside the segments of rmt, armt and their kin",
        config=("memseq.retrofit.backbone", "HuggingFaceConfig"),
    ),
    _model("mamba2_lm", "mamba2", "Mamba2LMConfig", "dao2024transformers", "the Mamba-2 language model as published: Mamba-2 layers alone"),
    _model(
        "rwkv7_lm", "rwkv7", "RWKV7LMConfig", "peng2025rwkv7", "RWKV-7's language model as published: all layers see the first's values"
    ),
    _model(
        "titans_mac", "titans_mac", "TitansMACConfig", "behrouz2024titans", "Titans: attention to what the memory says and to a segment"
    ),
    _model("titans_mag", "titans_mag", "TitansMAGConfig", "behrouz2024titans", "Titans: attention to near tokens, gated by the memory"),
    _model("titans_mal", "titans_mal", "TitansMALConfig", "behrouz2024titans", "Titans: attention to near tokens of what the memory says"),
    System(
        stem="replay", kind="method", about="memory replay: gradients of full BPTT, one segment's activations alive", cites=(_MEMFORMER,)
    ),
)

SYSTEMS: dict[str, System] = {row.stem: row for row in _ROWS}
_FAMILIES = {
    "slots that are written and read": "memformer memformer_lm memformer_encdec membart replay",
    "memory vectors around segments, for any backbone": "rmt armt hmt huggingface bart",
    "attention to what was kept": "attention sliding_window segment_attention transformer_xl compressive lamemo aaren",
    "matrices that fade": "linear_attention retnet gla hgrn2 rwkv6 mamba2 mamba2_lm stable_hadamard",
    "matrices that erase before they write": "deltanet gated_deltanet kda rwkv7 rwkv7_lm",
    "matrices with company": "mom keyed_mom memmamba stuffed_mamba based base_conv jrt_rnn jrt_rnn_lm jrt_prompt",
    "networks that learn while they read": (
        "titans titans_mac titans_mag titans_mal atlas omeganet dot deep_transformers miras moneta yaad memora recoding recode"
    ),
    "recurrent cells": "elman jordan lstm gru timescales bidirectional look_ahead",
    "any of them together": "stack",
}


def families() -> dict[str, tuple[System, ...]]:
    """The systems by what they are, each in one family."""
    return {name: tuple(SYSTEMS[stem] for stem in stems.split()) for name, stems in _FAMILIES.items()}


_registered: dict[str, type] = {}  # config classes of the user's


def find(stem: str) -> System:
    """The row of `stem`; raises `ConfigError` with the nearest name where there is none."""
    if stem not in SYSTEMS:
        raise ConfigError(f"there is no system {stem!r}; {nearest(stem, list(SYSTEMS))}")
    return SYSTEMS[stem]


@cache
def papers() -> dict[str, Paper]:
    """Every entry of papers.bib under its key."""
    text = resources.files("memseq").joinpath("papers.bib").read_text(encoding="utf-8")
    found = {}
    for entry in re.findall(r"^@.*?^}$", text, flags=re.MULTILINE | re.DOTALL):
        key = entry[entry.index("{") + 1 : entry.index(",")]
        values = dict(re.findall(r"^ *(\w+) *= *{(.*)},?$", entry, flags=re.MULTILINE))
        names = tuple(values["author"].split(" and "))
        found[key] = Paper(
            key=key,
            title=re.sub("[{}]", "", values["title"]),
            authors=names,
            year=int(values["year"]),
            arxiv=values.get("eprint"),
            bibtex=entry,
        )
    return found


def cite(stem: str) -> str:
    """The BibTeX of every paper behind a system; of this library where there is none."""
    row = find(stem)
    return "\n\n".join(paper.bibtex for paper in row.papers or (papers()["memseq"],))


def register(stem: str, config: type) -> None:
    """Let configs of a class of your own be saved and loaded under `stem`; call it before loading, such as beside the class.

    Raises `ConfigError` where the stem is taken by another class, or where the class is no dataclass.
    """
    if not is_dataclass(config):
        raise ConfigError(f"{config.__qualname__} is no dataclass; a config is a frozen keyword-only dataclass with build()")
    taken = SYSTEMS.get(stem)
    other = f"{taken.config[0]}.{taken.config[1]}" if taken and taken.config else _name(_registered[stem]) if stem in _registered else None
    if taken or (other and other != _name(config)):
        raise ConfigError(f"the stem {stem!r} already names {other or taken.kind}; register {config.__qualname__} under another one")
    _registered[stem] = config


def config_class(stem: str) -> type:
    """The config class a stem names, imported now. Raises `ConfigError` on an unknown stem, with the nearest one."""
    if stem in _registered:
        return _registered[stem]
    row = SYSTEMS.get(stem)
    if row is None or row.config is None:
        known = [*(name for name, other in SYSTEMS.items() if other.config), *_registered]
        raise ConfigError(
            f"no config has the type {stem!r}; {nearest(stem, known)}; for a class of your own call"
            f" memseq.systems.register({stem!r}, YourConfig) first"
        )
    module, name = row.config
    return getattr(import_module(module), name)


def stem_of(config: type) -> str | None:
    """The stem a config class goes by; None for a class that is not in the list and not registered."""
    for row in SYSTEMS.values():
        if row.config == (config.__module__, config.__qualname__):
            return row.stem
    return next((stem for stem, other in _registered.items() if other is config), None)


def _name(config: type) -> str:
    return f"{config.__module__}.{config.__qualname__}"
