"""Sockets and DNS, no policy."""
