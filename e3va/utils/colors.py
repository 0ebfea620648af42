"""Colors of classes in pictures."""

# Seven colors that people with any color vision can tell apart (Okabe and Ito), then the same
# colors at half their brightness. They repeat where there are more classes.
COLORS = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178)]
COLORS += [(213, 94, 0), (204, 121, 167)]
COLORS += [tuple(value // 2 for value in color) for color in COLORS]
