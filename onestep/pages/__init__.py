"""Pages of runs that a browser opens: one file each, with pictures, curves, style and script, and nothing to fetch."""
