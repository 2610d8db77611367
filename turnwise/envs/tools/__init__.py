"""Worlds of tools: functions and classes of yours (``world``), servers of the Model Context Protocol (``mcp``)."""
