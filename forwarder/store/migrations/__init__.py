"""signatures; the substance follows"""


def upgrade(url: str) -> None:
    """Bring the database to the newest schema; safe when several processes do it at once; blocking."""
