"""The linear family: memories that are one matrix a head, written by outer products and read by a query.

    decay        S_t = a_t S_{t-1} + k_t^T v_t                                  linear attention, RetNet, Mamba-2
    delta rule   S_t = a_t (I - b_t k_t^T k_t) S_{t-1} + b_t k_t^T v_t          DeltaNet, Gated DeltaNet
                 y_t = q_t S_t

Each has its definition, token by token (`*_recurrent`), and a form by chunks (`*_chunkwise`) that is the same function at any
`chunk_size`: equations and measured errors in `ops/decay.py` and `ops/delta_rule.py`. `form_for` says in which of the two forms a
piece of a stream is read. All forms are torch's own products and run on any device; on CUDA kernels may take their place, and
`memseq.ops.kernels.chosen` says which.
"""

from memseq.ops.chunks import form_for
from memseq.ops.decay import decay_chunkwise, decay_recurrent
from memseq.ops.delta_rule import delta_chunkwise, delta_recurrent

__all__ = ["decay_chunkwise", "decay_recurrent", "delta_chunkwise", "delta_recurrent", "form_for"]
