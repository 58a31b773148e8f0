"""Adapters for other libraries: their names and arguments, and exact answers.

One module for each library, imported only by who asks for it.
"""
