"""Agent programs of the client libraries that people use, over a real engine (extra `clients`)."""
