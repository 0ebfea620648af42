"""A user's data, looked at before it is trained on: ``python -m e3va.data check PATH``.

It counts, finds what training would refuse or leave out and what is likely to be a mistake, and
draws a contact sheet. No host is needed: pillow, numpy, pycocotools and tqdm are asked for at use.
"""
