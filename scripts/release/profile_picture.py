"""Draw docs/profile.png: profile the embedded model and take a screenshot of the report.

    python scripts/release/profile_picture.py [--record a.json]

Needs Chromium or Chrome. With --record, the report shows an existing record of `diffseg profile --json`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from diffseg.engines import example_images
from diffseg.measure.profile.html import render_report
from diffseg.measure.profile.record import ProfileSettings, read_profile
from diffseg.measure.profile.session import take_profile
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 960, 1500  # pixels: down to the operators
COLOURS = 128


def main() -> None:
    """Profile, render, take the screenshot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, help="draw this record instead of measuring")
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"needs one of {', '.join(BROWSERS)}")
    if arguments.record:
        record = read_profile(arguments.record)
    else:
        record, _ = take_profile("tiny", example_images(), ProfileSettings())
    target = Path(__file__).parents[2] / "docs" / "profile.png"
    with tempfile.TemporaryDirectory() as folder:
        page, photograph = Path(folder, "report.html"), Path(folder, "report.png")
        page.write_text(render_report(record), encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={photograph}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        with Image.open(photograph) as image:
            image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
