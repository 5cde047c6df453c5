"""A page as PDF, by WeasyPrint, which the extra `pdf` installs."""

import logging
from importlib.util import find_spec

from PIL import ImageFile

from models.errors import FixYourInput


class NoPdf(FixYourInput):
    """PDF can't be made here; the message says what is missing."""

    next_step = "install what the message names, or print the HTML page from a browser."


def as_pdf(page: bytes) -> bytes:
    """Return an HTML page that loads nothing as the bytes of a PDF.

    Raises:
        NoPdf: WeasyPrint, or a library of the system that it needs, is not installed.
    """
    if find_spec("weasyprint") is None:
        raise NoPdf("PDF needs WeasyPrint: pip install 'wardround[pdf]'.")
    try:
        from weasyprint import HTML, URLFetcher  # noqa: PLC0415  # only here, where it is needed
    except OSError as error:
        raise NoPdf(f"WeasyPrint needs Pango, on Debian libpangoft2-1.0-0: {error}") from error
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # the import sets it for all that reads pictures here
    logging.getLogger("weasyprint").setLevel(logging.ERROR)  # styles that only browsers read
    made = HTML(string=page.decode(), url_fetcher=URLFetcher(allowed_protocols=["data"])).write_pdf()
    return bytes(made)
