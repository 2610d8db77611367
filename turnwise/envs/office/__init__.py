"""A small office: contacts, a calendar and mail (``turnwise/Office-v0``)."""
