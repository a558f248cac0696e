"""Makes the picture in the README: a screenshot of the head of a run's report, taken with Chromium.

    .venv/bin/python docs/pictures.py runs/bundled

The argument is the run directory.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).parent / "pictures/report.png"
SIZE = "1280,1560"


def main(run: Path) -> None:
    """Writes the picture."""
    PICTURE.parent.mkdir(exist_ok=True)
    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")
    with tempfile.TemporaryDirectory() as profile:
        own = (f"--user-data-dir={profile}", f"--window-size={SIZE}", f"--screenshot={PICTURE}")
        subprocess.run(["chromium", *switches, *own, (run / "report/index.html").resolve().as_uri()], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
