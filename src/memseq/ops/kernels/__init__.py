"""Other programs for what the ops compute: Triton kernels of ours, and those of `fla-core`; `choice.py` alone decides which one runs.

>>> from memseq.ops.kernels import chosen, use
>>> chosen("delta_rule", device="cpu").kernel
'torch'
>>> with use("torch"):  # whatever else there is
...     pass
"""

from memseq.ops.kernels.choice import OPS, Choice, chosen, use

__all__ = ["OPS", "Choice", "chosen", "use"]
