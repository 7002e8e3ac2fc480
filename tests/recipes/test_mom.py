"""The recipe of mixtures: states as large as it says, and a short training that runs and resumes."""

import json
import math
from dataclasses import replace

from memseq.memories.mom import MoMConfig
from memseq.recipes.mom import claims, contenders, main


def numbers(config):
    """Numbers that a token uses of a layer's matrices, and that are kept."""
    state = config.build().init_state(1)
    if isinstance(config, MoMConfig):
        each = state.M[0, 0].numel()
        return (config.n_active + config.shared) * each, (config.n_memories + config.shared) * each
    return state.S.numel(), state.S.numel()


def test_states_are_compared_as_it_is_said():
    wanted = {what.name: what for what in contenders()}
    activated, total = numbers(wanted["mqar, mom"].memory)
    assert numbers(wanted["mqar, mom, nothing shared"].memory) == (activated, total) == (1536, 2560)
    assert numbers(wanted["mqar, mom, one projection"].memory) == (activated, total)
    assert numbers(wanted["mqar, gated_deltanet, activated"].memory)[0] == activated
    assert numbers(wanted["mqar, gated_deltanet, total"].memory)[1] == total
    assert wanted["single, mom"].memory == wanted["interleaved, mom"].memory
    assert wanted["single, mom"].stages[-1].vocab_size == wanted["interleaved, mom"].stages[-1].vocab_size
    assert wanted["interleaved, mom, balance 0"].memory.balance == 0


def test_a_short_run_is_complete_and_resumes(tmp_path, capsys, monkeypatch):
    short = [replace(what, steps=1, asked=8, batch_size=4) for what in contenders()]
    monkeypatch.setattr("memseq.recipes.mom.contenders", lambda: short)
    path = tmp_path / "mom.json"
    main(["--json", str(path), "--only", "single"])
    main(["--json", str(path)])
    result = json.loads(path.read_text())
    assert sorted(row["name"] for row in result["rows"]) == sorted(what.name for what in short)
    assert set(result["claims"]) == set(claims(result["rows"]))
    routed = [row for row in result["rows"] if "mom" in row["name"]]
    assert all(len(row["load"]) == 2 and all(abs(sum(share) - 1) < 0.01 for share in row["load"]) for row in routed)
    even = [math.log2(len(share)) for row in routed for share in row["load"]]
    assert all(0 <= bits <= most + 1e-3 for bits, most in zip((bits for row in routed for bits in row["entropy"]), even, strict=True))
    assert "interleaved" in capsys.readouterr().out
