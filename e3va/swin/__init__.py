"""The trunk: a Swin Transformer, its sizes as data, its precision and its storage."""
