"""Prices of articles."""

from data.price_table import CENTS  # pants: no-infer-dep


def price(article: str, count: int = 1) -> int:
    """Price in cents of some pieces of an article."""
    return CENTS[article] * count


def text(cents: int) -> str:
    """Cents as an amount with two decimals."""
    return f"{cents // 100}.{cents % 100:02d}"
