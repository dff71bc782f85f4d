"""Print the catalog, dearest article first."""

import chevron
from catalog.money import text
from data.price_table import CENTS  # pants: no-infer-dep

TEMPLATE = "{{#rows}}{{{article}}}: {{amount}}\n{{/rows}}"


def main() -> None:
    """Print it."""
    dearest_first = sorted(CENTS.items(), key=lambda item: -item[1])
    rows = [{"article": article, "amount": text(cents)} for article, cents in dearest_first]
    print(chevron.render(TEMPLATE, {"rows": rows}), end="")


if __name__ == "__main__":
    main()
