"""Split an amount between people by weight."""


def split(total, weights):
    """Return each person's share of `total`, in cents, in the order of `weights`."""
    if not weights or any(weight <= 0 for weight in weights.values()):
        raise ValueError("every person needs a positive weight")
    whole = sum(weights.values())
    return {name: total * weight // whole for name, weight in weights.items()}
