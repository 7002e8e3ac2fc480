"""The page in a real browser: its script runs without a fault. Left out where there is no Chromium."""

import shutil
import subprocess

import pytest

from memseq.report.html import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium on this machine; install one, such as Debian's package chromium"
)


def shown(html, folder, script=""):
    """The page's document after its script, and then `script`, ran."""
    file = folder / "page.html"
    file.write_text(html.replace("</body>", f"<script>{script}</script></body>"))
    made = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    faults = [line for line in made.stderr.splitlines() if "CONSOLE" in line]
    assert faults == []
    return made.stdout


@pytest.mark.slow
def test_pointing_at_a_slot_lights_its_tokens(tmp_path):
    maps = [
        {"tokens": [97, 98], "text": ["a", "<"], "write": [[0.5, 0.1], [0.0, 0.2]], "keep": [0.4, 0.8], "read": [[0.9, 0.3], [0.1, 0.7]]}
    ]
    slots = {"segment_length": 2, "n_slots": 2, "segments": 1, "keep": [0.4, 0.8], "half_life": [0.8, 3.1], "maps": maps, "says": []}
    model = {"name": "one", "system": "memformer_lm", "parameters": 12, "bounded": True, "trained_length": 8}
    result = {"model": model, "probes": {"slots": {"about": "slots", "result": slots}}, "machine": {}, "seconds": 1.0}
    script = """
      const [first, second] = document.querySelectorAll(".slots button"), words = document.querySelectorAll(".tokens span");
      second.dispatchEvent(new PointerEvent("pointerenter"));
      document.body.dataset.lit = [...words].map((w) => w.style.getPropertyValue("--w")).join(" ");
      document.querySelector('.choice button[value="read"]').click();
      words[0].dispatchEvent(new PointerEvent("pointerenter"));
      document.body.dataset.told = words[0].dataset.tip;
      document.querySelector(".theme").click();
    """
    document = shown(page([result]), tmp_path, script)
    assert 'class="tip"' in document
    assert 'data-lit="0 1"' in document  # of slot 2 nothing is from the first token
    assert 'data-told="reads most from slot 1: 90.0 %"' in document
    assert 'data-theme="' in document
