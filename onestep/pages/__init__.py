"""Pages of runs that a browser opens: one file each, with pictures, curves, style and script, and nothing to fetch.

The page on which a generator draws is a folder, see :mod:`onestep.pages.demo`.
"""
