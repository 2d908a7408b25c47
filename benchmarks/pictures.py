# SPDX-License-Identifier: Apache-2.0
"""Take the pictures of pages that the README and docs/ show: each is what Chromium makes of a command's page.

python -m benchmarks.pictures            # writes docs/*.png; needs playwright and a Chromium
"""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, sync_playwright

from bsmodel.command import main
from bsmodel.errors import InvalidInputError
from tests.chromium import CHROMIUM

ROOT = Path(__file__).parent.parent
_MARGIN = 16  # [px] above and below


@dataclass(frozen=True)
class Picture:
    """A picture of a part of the page of a command, in a window so wide; `pressed` is the batch that is looked at."""

    name: str
    command: str
    part: str
    pressed: int | None = None
    theme: Literal["light", "dark"] = "light"
    width: int = 1280


PICTURES = (
    Picture("plan", "plan gpt2 --target-batch 512 --samples 1000000 --epochs 3 --gpu rtx-4090-24gb --gpu a100-40gb", "section:has(#memory-0)", pressed=8),
    Picture("compare", "compare gpt2 --target-batch 512 --samples 1000000 --epochs 3 --devices 1,8", "section:has(figure)", theme="dark", width=1000),
)


def take(picture: Picture, browser: Browser, folder: Path) -> None:
    """Write the page and its picture."""
    page = folder / f"{picture.name}.html"
    main([*shlex.split(picture.command), "--html", str(page)])
    shown = browser.new_page(viewport={"width": picture.width, "height": 900}, color_scheme=picture.theme, device_scale_factor=1.25)
    shown.goto(page.as_uri())
    shown.wait_for_function("document.querySelectorAll('.live svg').length === document.querySelectorAll('.live').length")
    part = shown.locator(picture.part)
    if picture.pressed is not None:
        part.locator(f'button[data-batch="{picture.pressed}"]').click()
        shown.locator("header").hover()
    box = part.bounding_box()
    if box is None:
        raise InvalidInputError(f"the page of {picture.name} shows no {picture.part}")
    clip = {"x": 0, "y": box["y"] - _MARGIN, "width": picture.width, "height": box["height"] + 2 * _MARGIN}
    shown.screenshot(path=ROOT / "docs" / f"{picture.name}.png", full_page=True, clip=clip)
    shown.close()


if __name__ == "__main__":
    with sync_playwright() as running, tempfile.TemporaryDirectory() as folder:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for picture in PICTURES:
            take(picture, browser, Path(folder))
        browser.close()
