"""Print a bill."""

from invoice.split import split


def lines(total, weights):
    """Return one line a person, amounts with two decimals, and the total."""
    shares = split(total, weights)
    rows = [f"{name:<10}{cents / 100:>10.2f}" for name, cents in shares.items()]
    return [*rows, f"{'total':<10}{sum(shares.values()) / 100:>10.2f}"]
