"""Names of other libraries, and what to write for them here, in one table for each class.

An entry is a list of pairs: a piece of code, and what it does, as the end of a sentence. The tests
run every piece of code.
"""
