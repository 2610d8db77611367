"""A run that can be looked at: one HTML file that works offline, with everything a run has stored.

runs.py and episodes.py read a run, credit.py and tree.py recompute what it did not store, page.py puts the file
together; the JavaScript and CSS beside them are what a browser executes, as they stand.
"""
