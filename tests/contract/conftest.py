"""The memories of these tests lie beside them: `sane.py`, `configs.py` and `broken/`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
