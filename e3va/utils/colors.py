"""Colours of classes in pictures."""

# Colours that differ for people with any colour vision (Okabe and Ito), then dimmer ones; they
# repeat where classes are many.
COLOURS = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178)]
COLOURS += [(213, 94, 0), (204, 121, 167)]
COLOURS += [tuple(v // 2 for v in colour) for colour in COLOURS]
