"""Numbers of things in sentences."""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return ``1 image`` or ``2 images``; the plural is ``singular`` with an s by default."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"
