"""Reports: results and studies as one HTML page that needs nothing else, and as PNG figures."""

from saif_fast.report.documents import read_document
from saif_fast.report.evaluation import sections_of
from saif_fast.report.page import Figure, Section, make_page
from saif_fast.report.png import write_pngs
from saif_fast.report.studies import claims_section

__all__ = [
    "Figure",
    "Section",
    "claims_section",
    "make_page",
    "read_document",
    "sections_of",
    "write_pngs",
]
