"""Does it help? Paired comparisons of methods on the same data splits, and what they say in words."""
