"""Reports as one HTML file each: the style, the page around a template, and figures as SVG.

What training, evaluation, quantisation and the demo write looks alike because it all comes through here. A page needs
no network, no server and no script, so it can be mailed, opened from a disk and kept.
"""

from tokenmill.core.html.charts import Mark, Series, line_chart
from tokenmill.core.html.figures import Interval, interval_chart, radar_chart
from tokenmill.core.html.page import render_page, write_page

__all__ = [
    "Interval",
    "Mark",
    "Series",
    "interval_chart",
    "line_chart",
    "radar_chart",
    "render_page",
    "write_page",
]
