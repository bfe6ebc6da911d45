"""The HTML report: a plan as one file that opens without network; `write_html` makes it.

Python writes the text, the tables and the plan's data; the scripts of `static/` draw the graph and
the charts from that data, with the libraries of `vendor/`, all of them inside of the file.
"""

from __future__ import annotations

from autoplan.html.page import html_of, write_html

__all__ = ["html_of", "write_html"]
