"""A folder of text files and a calculator (``turnwise/Files-v0``)."""
