"""``mad-lint``: a review of a defense, check by check."""
