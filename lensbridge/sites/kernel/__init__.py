"""Inside an attention kernel: queries and keys after rotary, scores, pattern, z.

No module gives these values. While an attention module runs, a tap watches the functions of PyTorch
that it calls (`tap.py`), and hands the values to the callbacks.
"""
