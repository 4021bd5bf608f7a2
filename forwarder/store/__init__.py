"""All SQL and nothing else, behind verbs."""
