"""Viewing runs: one HTML file that shows everything that a run has stored, and works offline.

runs.py and episodes.py read a run. credit.py and tree.py recompute what a run does not store. page.py puts the file
together, with the JavaScript and CSS files of this folder in it as they are.
"""
