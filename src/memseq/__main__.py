"""`python -m memseq` is `memseq`: what `torchrun -m memseq train ...` starts."""

import sys

from memseq.cli import main

if __name__ == "__main__":
    sys.exit(main())
