"""Every pair at or above a threshold, and what is made of pairs."""
