"""What a trained memory holds, and what it costs to hold it."""

from memseq.probes.compression import Bin, Curve, bits_per_byte, shallow
from memseq.probes.speed import Cost, stream_costs

__all__ = ["Bin", "Cost", "Curve", "bits_per_byte", "shallow", "stream_costs"]
