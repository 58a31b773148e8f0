"""One HTML file that holds a whole report: no network, no script, pictures inside."""

import base64
import io
from pathlib import Path
from typing import Any

from cossim_fast._replacing import check_place, replacing
from cossim_fast.diagnose import notes, plots
from cossim_fast.diagnose.measures import Measures

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
h3 { font-size: 1.2rem; padding: .6rem .9rem; border-left: .4rem solid var(--mark);
     background: #f5f5f5; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
td:first-child { color: #666; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
img { width: 100%; height: auto; }
@media print { .pictures { grid-template-columns: 1fr 1fr; } }
"""
_HEALTHY, _FINDING = "#2a8a3e", "#c0392b"


def write_report(report: Measures, path: Path, *, title: str) -> Path:
    """Write the report; the file appears whole or not at all."""
    check_place(path)  # before the pictures, which take seconds
    pictures = "\n".join(
        f'<img alt="{name}" src="data:image/png;base64,{_png(figure)}">'
        for name, figure in plots.of_report(report).items()
    )
    mark = _HEALTHY if report.verdict == "healthy" else _FINDING
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{notes.html_text(title)}: {notes.html_text(report.verdict)}</title>
<style>:root {{ --mark: {mark}; }}{_STYLE}</style>
</head>
<body>
<h1>{notes.html_text(title)}</h1>
{notes.as_html(report.note())}
<div class="pictures">
{pictures}
</div>
</body>
</html>
"""
    with replacing(path) as file:
        file.write(page.encode())
    return path


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
