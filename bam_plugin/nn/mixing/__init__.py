"""Binary convolutions in any network: the recipe, what it touches, and the swap."""
