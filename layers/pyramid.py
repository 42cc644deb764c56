"""Symbols of a pyramid of grids, `layers.pooling.pyramid`, over the option ``levels``. Data, as cards are.

L levels a, b, c, d (0: none), M the finest; ``whole`` where coarser levels are pooled from its map, but for those that
do not divide it, ``skew`` in number. ``windows`` are the elements of all windows, ``made`` the bins of a plane that are
pooled, ``lone`` the elements of windows that are all there is, ``joined`` the additions of gradients that meet,
``again`` the levels that share the map of the finest with another.
"""

PYRAMID_SYMBOLS = {
    "a": "axis(levels, 0)",
    "b": "axis(levels, 1)",
    "c": "axis(levels, 2)",
    "d": "axis(levels, 3)",
    "L": "(a > 0) + (b > 0) + (c > 0) + (d > 0)",
    "M": "max(1, a, b, c, d)",
    "whole": "H % M == 0 and W % M == 0",
    "skew": "(whole and M % max(1, a) > 0) + (whole and M % max(1, b) > 0) + "
    "(whole and M % max(1, c) > 0) + (whole and M % max(1, d) > 0)",
    "window_a": "0 if a == 0 or whole and a == M else M*M if whole and M % a == 0 "
    "else (H + a - gcd(H, a))*(W + a - gcd(W, a))",
    "window_b": "0 if b == 0 or whole and b == M else M*M if whole and M % b == 0 "
    "else (H + b - gcd(H, b))*(W + b - gcd(W, b))",
    "window_c": "0 if c == 0 or whole and c == M else M*M if whole and M % c == 0 "
    "else (H + c - gcd(H, c))*(W + c - gcd(W, c))",
    "window_d": "0 if d == 0 or whole and d == M else M*M if whole and M % d == 0 "
    "else (H + d - gcd(H, d))*(W + d - gcd(W, d))",
    "windows": "N*C*(window_a + window_b + window_c + window_d + (H*W if whole else 0))",
    "made": "(a*a if window_a else 0) + (b*b if window_b else 0) + "
    "(c*c if window_c else 0) + (d*d if window_d else 0) + "
    "(M*M if whole else 0)",
    "lone": "(window_a if a == 1 else 0) + (window_b if b == 1 else 0) + "
    "(window_c if c == 1 else 0) + (window_d if d == 1 else 0) + (H*W if M == 1 else 0)",
    "again": "(a == M) + (b == M) + (c == M) + (d == M) - 1 if whole else 0",
    "joined": "(L - skew - 1)*N*C*M*M + skew*E if whole else (L - 1)*E",
}
