"""Why a trained network does what it does: the papers' diagnostics on any checkpoint.

Each module but those named here is one analysis of ``ltbench analyze``. ``command`` reads the
command line, ``subject`` loads network and data, ``result`` writes JSON, figures and tables;
``lanczos`` and ``curvature`` are the mathematics of spectra, and ``second_order`` makes it fast.
"""
