"""Reports: a results document as one HTML page that needs nothing else, and as PNG figures."""

from saif_fast.report.evaluation import sections_of
from saif_fast.report.page import Figure, Section, make_page
from saif_fast.report.png import write_pngs

__all__ = ["Figure", "Section", "make_page", "sections_of", "write_pngs"]
