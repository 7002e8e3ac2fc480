"""What a trained memory holds, and what it costs to hold it."""

from memseq.probes.compression import Bin, Curve, bits_per_byte, shallow
from memseq.probes.probe import Anatomy, Probe, Subject
from memseq.probes.registry import PROBES, find_probe, probe_names
from memseq.probes.speed import Cost, stream_costs

__all__ = [
    "PROBES",
    "Anatomy",
    "Bin",
    "Cost",
    "Curve",
    "Probe",
    "Subject",
    "bits_per_byte",
    "find_probe",
    "probe_names",
    "shallow",
    "stream_costs",
]
