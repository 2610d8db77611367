"""Questions about small generated databases, answered with SQL (``turnwise/SQL-v0``)."""
