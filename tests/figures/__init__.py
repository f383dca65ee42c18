"""What the tests of the promises have measured: noted as they run, set as a page, and no cell left without a figure."""

from __future__ import annotations

from tests.figures.noting import Figure, figures_file

__all__ = ["Figure", "figures_file"]
