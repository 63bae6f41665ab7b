"""Thank-you notes."""
