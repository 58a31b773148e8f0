"""Adapters for other libraries: their names, arguments and results, computed exactly.

One module for each library, imported only by who asks for it.
"""
