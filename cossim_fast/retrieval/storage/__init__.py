"""Where vectors, codes and ids lie, in memory and in files."""
