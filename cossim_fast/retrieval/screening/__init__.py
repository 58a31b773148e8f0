"""Cheap scores of many rows with a proven error: codes, screens, and what they cost here."""
