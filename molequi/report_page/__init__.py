"""The report page of a run: one HTML file that says whether a model is good.

The file needs no server and no network: its pictures are inside, and it fetches nothing.
"""

from molequi.report_page.finished import FinishedRun
from molequi.report_page.page import samples_of, write_page

__all__ = ["FinishedRun", "samples_of", "write_page"]
