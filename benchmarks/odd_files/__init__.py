"""Files as real tools write them, and what the commands do with each of them."""
