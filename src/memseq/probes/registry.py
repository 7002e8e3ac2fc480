"""The probes by name. A probe is added by a row here; `task:NAME` makes one of any task of `memseq.tasks`."""

from importlib import import_module
from typing import Any

from memseq.errors import ConfigError, nearest
from memseq.probes.probe import Probe
from memseq.tasks import TASKS

__all__ = ["PROBES", "find_probe", "probe_names"]

PROBES = {  # name -> module and class, in the order of the report
    "recall": "recall.RecallProbe",
    "capacity": "recall.CapacityProbe",
    "retention": "retention.RetentionProbe",
    "copying": "copying.CopyingProbe",
    "verbatim": "verbatim.VerbatimProbe",
    "order": "order.OrderProbe",
    "text": "text.TextProbe",
    "collapse": "collapse.CollapseProbe",
    "slots": "slots.SlotsProbe",
    "timescales": "timescales.TimescalesProbe",
    "fidelity": "fidelity.FidelityProbe",
    "retrieval_heads": "retrieval_heads.RetrievalHeadsProbe",
    "cost": "cost.CostProbe",
}


def probe_names() -> list[str]:
    """Everything that `find_probe` knows."""
    return [*PROBES, *(f"task:{name}" for name in TASKS)]


def find_probe(name: str, **settings: Any) -> Probe:
    """The probe of a name, with values for its fields. Raises `ConfigError` with the nearest name where there is none."""
    if name.startswith("task:") and name.removeprefix("task:") in TASKS:
        return import_module("memseq.probes.task").TaskProbe(task=name.removeprefix("task:"), **settings)
    if name not in PROBES:
        raise ConfigError(f"there is no probe {name!r}; {nearest(name, probe_names())}")
    module, cls = PROBES[name].split(".")
    return getattr(import_module(f"memseq.probes.{module}"), cls)(**settings)
