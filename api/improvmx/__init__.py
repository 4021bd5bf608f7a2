"""The endpoints of ImprovMX's v3 API, one noun a file."""
