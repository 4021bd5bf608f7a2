"""Mail in: listeners, the two dialogues, limits and screening."""
