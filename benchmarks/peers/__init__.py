"""What the peers need: their entries written into where they keep them, as if an earlier beat had run each of them."""
