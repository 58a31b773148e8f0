"""The score of a pair (`exact`), and scores of many pairs within an error bound (`near`)."""
