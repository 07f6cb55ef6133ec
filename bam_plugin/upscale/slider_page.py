"""One HTML file with before/after sliders. It opens anywhere and fetches nothing.

Each pair of pictures lies in the page as two PNGs. The divider is an ordinary range input stretched over the picture,
so a mouse or a finger drags it, and the arrow keys move it. A content security policy forbids every connection of
the page.
"""

from __future__ import annotations

import base64
import html
import io
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DIVIDER = Path(__file__).parent / "page"
"""Style and script of the divider, which the page of `bam serve` uses, too."""

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { margin: 0 auto; max-width: 1200px; padding: 1rem; }
  h1 { font-size: 1.4rem; }
  figure { margin: 0 0 2.5rem; }
  figcaption { margin-bottom: .4rem; }
$divider_style</style>
</head>
<body>
<h1>$title</h1>
<p>Drag across a picture, or focus it and use the arrow keys.
  <label>Zoom <select id="zoom"><option value="">fit</option><option value="1">100 %</option>
  <option value="2">200 %</option><option value="4">400 %</option></select></label></p>
$figures
<script>
$divider_script
  document.querySelectorAll(".pair input").forEach(moveWith);
  const zoom = document.getElementById("zoom");
  zoom.addEventListener("change", () => {
    document.body.classList.toggle("zoomed", zoom.value > 1);
    for (const pair of document.querySelectorAll(".pair")) {
      pair.style.width = zoom.value ? pair.querySelector("img").naturalWidth * zoom.value + "px" : "100%";
    }
  });
</script>
</body>
</html>
""")

_FIGURE = string.Template("""<figure>
<figcaption>$caption</figcaption>
<div class="frame"><div class="pair">
<img class="before" alt="$before_name: $caption" src="$before">
<img class="after" alt="$after_name: $caption" src="$after">
<input type="range" min="0" max="100" step="0.1" value="50"
  aria-label="divider between $before_name and $after_name: $caption">
<div class="divider"></div>
<div class="names"><span>$before_name</span><span>$after_name</span></div>
</div></div>
</figure>""")


@dataclass(frozen=True)
class Slider:
    """Two pictures of one size, uint8 (H, W), (H, W, 3) or (H, W, 4), with a caption and a name for each."""

    caption: str
    before: np.ndarray
    after: np.ndarray
    before_name: str = "bicubic"
    after_name: str = "network"


def slider_page(sliders: Sequence[Slider], *, title: str) -> str:
    """Return the HTML text. Raises ValueError if the two pictures of a slider differ in size."""
    figures = []
    for item in sliders:
        if item.before.shape[:2] != item.after.shape[:2]:
            raise ValueError(
                f"{item.caption}: both pictures must have one size, {item.before.shape} and {item.after.shape}"
            )
        figures.append(
            _FIGURE.substitute(
                caption=html.escape(item.caption),
                before_name=html.escape(item.before_name),
                after_name=html.escape(item.after_name),
                before=_data_uri(item.before),
                after=_data_uri(item.after),
            )
        )
    return _PAGE.substitute(
        title=html.escape(title),
        figures="\n".join(figures),
        divider_style=(DIVIDER / "divider.css").read_text(encoding="utf-8"),
        divider_script=(DIVIDER / "divider.js").read_text(encoding="utf-8"),
    )


def _data_uri(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
