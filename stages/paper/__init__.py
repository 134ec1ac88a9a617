"""The tables and figures of the paper and of the post about it, made again: their numbers, and ours beside them."""
