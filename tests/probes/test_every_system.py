"""Every system can be probed: whatever its state is made of, and whether it grows."""

import pytest
import torch

from memseq.models.presets import preset, systems_with_presets
from memseq.probes import Subject, find_probe
from memseq.recipes.probe_subject import anatomy_of

SMALL = {"d_model": 64, "n_heads": 2, "n_layers": 2, "n_slots": 4, "segment_length": 8, "window": 8}
FEW = ["compressive", "attention"]  # one number a stream, a growing state; the others take longer
NAMES = ["recall", "capacity", "retention", "copying", "collapse", "slots", "timescales", "fidelity", "retrieval_heads", "cost"]


def probed(system):
    torch.manual_seed(0)
    model = preset(system, "tiny", vocab_size=64, **SMALL).build()
    subject = Subject(name=system, model=model, anatomy=anatomy_of(model))
    found = {}
    for name in NAMES:
        few = {"loads": (1, 4)} if name in ("recall", "capacity") else {}
        probe = find_probe(name, length=16, samples=2, **few)
        if probe.unmet(subject) is None:
            found[name] = probe.run(subject)
    return found


@pytest.mark.parametrize("system", FEW)
def test_a_system_is_probed(system):
    found = probed(system)
    assert {"recall", "retention", "collapse", "cost"} <= set(found)
    assert all(row["answer"] for result in found.values() for row in result["says"])


@pytest.mark.slow
@pytest.mark.parametrize("system", [name for name in systems_with_presets() if name not in FEW])
def test_every_other_system_is_probed(system):
    test_a_system_is_probed(system)
