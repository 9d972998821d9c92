"""The pictures of report pages in docs/, taken in a headless Chromium: `make pictures RUNS=FOLDER STUDY=FOLDER`.

docs/report.png is the page of RUNS down to its curves, docs/band.png its curves with the bands of the seeds, and
docs/study.png the part of the page of STUDY, a folder of `txl search`, that shows its trials. docs/report.md says how
the sweep and the search that are shown were made. Needs Debian's packages chromium and chromium-driver.
"""

import argparse
import base64
import sys
import tempfile
from pathlib import Path

from tests.support.browser import Browser, headless_browser, missing_programs
from txl.files import PROJECT
from txl.report.__main__ import main as report

DOCS = PROJECT / "docs"
MARGIN = 10  # pixels around what is shown
CURVES = "section:has(#curves)"
RECTANGLE = "(r => [r.left, r.top, r.right, r.bottom])(document.querySelector({selector!r}).getBoundingClientRect())"


def take_picture(window: Browser, path: Path, *selectors: str) -> None:
    """Write what these elements of the page cover, and what lies between them, as a PNG."""
    window.ask("scrollTo(0, 0)")
    sides = [window.ask(RECTANGLE.format(selector=selector)) for selector in selectors]
    left, top = (min(side[i] for side in sides) - MARGIN for i in (0, 1))
    right, bottom = (max(side[i] for side in sides) + MARGIN for i in (2, 3))
    clip = {"x": max(0, left), "y": max(0, top), "width": right - left, "height": bottom - max(0, top), "scale": 1}
    asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    path.write_bytes(base64.b64decode(window.driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]))
    print(f"wrote {path}")


def open_report(window: Browser, folders: list[Path], page: Path) -> None:
    """Write the page of these folders and open it."""
    if report([*map(str, folders), "--html", str(page)]):
        sys.exit(1)  # it has said why
    window.open(page)


def main() -> None:
    """Take the pictures that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="run folders, for report.png and band.png")
    parser.add_argument("--study", type=Path, help="the folder of a search, for study.png")
    parser.add_argument("--out", type=Path, default=DOCS, help="where the pictures are written (docs/)")
    parser.add_argument("--dark", action="store_true", help="in the dark theme")
    options = parser.parse_args()
    if missing := missing_programs():
        sys.exit(f"error: no {' and no '.join(missing)} here; on Debian: apt-get install chromium chromium-driver")
    with headless_browser() as window, tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        if options.runs:
            open_report(window, options.runs, page)
            if options.dark:
                window.click("#theme")
            take_picture(window, options.out / "report.png", "header", CURVES)
            window.click("#band")
            take_picture(window, options.out / "band.png", CURVES)
        if options.study:
            open_report(window, [options.study], page)
            if options.dark:
                window.click("#theme")
            take_picture(window, options.out / "study.png", "section.study")


if __name__ == "__main__":
    main()
