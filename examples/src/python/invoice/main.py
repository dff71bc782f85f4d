"""Print an invoice: `invoice "bolt M6=10" "nut M6=10"`."""

import sys

import chevron
from catalog.money import price, text

TEMPLATE = "{{#lines}}{{count}} x {{{article}}}: {{amount}}\n{{/lines}}total: {{total}}"


def main() -> None:
    """Read the order from the command line."""
    order = [word.rsplit("=", 1) for word in sys.argv[1:]] or [["bolt M6", "1"]]
    lines = [
        {"article": article, "count": count, "amount": text(price(article, int(count)))}
        for article, count in order
    ]
    total = text(sum(price(article, int(count)) for article, count in order))
    print(chevron.render(TEMPLATE, {"lines": lines, "total": total}))


if __name__ == "__main__":
    main()
