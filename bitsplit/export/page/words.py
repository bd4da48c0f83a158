"""Numbers and layers as the page words them."""

import glob
from collections.abc import Iterator, Mapping

from bitsplit.export.page.facts import InputRange, LayerFacts
from bitsplit.settings import FLOAT_BITS, MOST_BITS

_WORST = 5
_WORTH_SAYING = 1.1  # how far values reach beyond the end of the grid, times that end
_NEGLIGIBLE = 1e-4  # an error that nobody needs to mend


def bits_name(wbits: int, abits: int) -> str:
    """W4A4, W4 where inputs stay in floating point, and so on."""
    sides = [f"{side}{bits}" for side, bits in (("W", wbits), ("A", abits)) if bits != FLOAT_BITS]
    return "".join(sides) or "floating point"


def percent_text(part: float, digits: int = 2) -> str:
    """A part in percent with so many digits behind the point, and "< 0.01" where they would not show it.

    >>> percent_text(0.12345), percent_text(1e-7), percent_text(0.0)
    ('12.35', '< 0.01', '0.00')
    """
    least = 10.0**-digits
    return f"< {least:.{digits}f}" if 0 < 100 * part < least / 2 else f"{100 * part:.{digits}f}"


def bytes_text(count: float) -> str:
    """Three digits or so of a size.

    >>> bytes_text(999), bytes_text(734_400), bytes_text(46_900_000)
    ('999 B', '734 kB', '46.9 MB')
    """
    power = next((power for power in range(3) if round(count / 1000**power, 1) < 1000), 3)
    amount = count / 1000**power
    return f"{amount:.{0 if amount >= 100 or not power else 1}f} {('B', 'kB', 'MB', 'GB')[power]}"


def change_text(points: float) -> str:
    """Points with their sign.

    >>> change_text(-1.456), change_text(0.0)
    ('−1.46', '+0.00')
    """
    return f"{round(points, 2) + 0.0:+.2f}".replace("-", "−")  # no negative zero


def value_text(value: float) -> str:
    """Three digits of a value, with a minus sign as it is printed.

    >>> value_text(0.0), value_text(-4.3), value_text(12345.6)
    ('0', '−4.30', '12,346')
    """
    text = f"{value:,.0f}" if value == 0 or abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")


def clip_text(values: InputRange) -> str:
    """The ends of the grid; where channels have their own, the narrowest's and the widest's.

    >>> clip_text(InputRange(0.0, 2.5, 0.0, 2.5, None)), clip_text(InputRange(-0.5, 3.0, -0.5, 3.0, None))
    ('0 to 2.50', '−0.500 to 3.00')
    >>> clip_text(InputRange(0.0, 2.0, 0.0, 1.0, None)), clip_text(InputRange(-2.0, 2.0, -1.0, 1.0, None))
    ('0 to 1.00…2.00', '±1.00…2.00')
    """
    if values.low == -values.high and values.narrow_low == -values.narrow_high:
        return f"±{_between(values.narrow_high, values.high)}"
    return f"{_between(values.narrow_low, values.low)} to {_between(values.narrow_high, values.high)}"


def _between(narrow: float, wide: float) -> str:
    return value_text(wide) if narrow == wide else f"{value_text(narrow)}…{value_text(wide)}"


def printable(text: str) -> str:
    """`text` with a mark for each character that no markup may hold."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def worst_layers(layers: list[LayerFacts]) -> list[tuple[LayerFacts, str, tuple[str, str]]]:
    """Up to five layers with the greatest errors, what each loses, and what to try."""
    worst = sorted((layer for layer in layers if layer.error > 0), key=lambda layer: -layer.error)[:_WORST]
    return [(layer, _fault(layer), _remedy(layer)) for layer in worst]


def _fault(layer: LayerFacts) -> str:
    parts = []
    if layer.wbits != FLOAT_BITS:
        lost = percent_text(layer.relative_error)
        parts.append(f"{layer.wbits}-bit weights lose {lost}% of its output's energy")
    if layer.abits != FLOAT_BITS:
        lost = percent_text(layer.input_error)
        parts.append(f"{layer.abits}-bit activations {lost}% of that of its input")
    pairs = [(v.observed, (v.low, v.high)) for v in layer.inputs if v.observed]
    ends = [(reach, end) for observed, grid in pairs for reach, end in zip(observed, grid, strict=True) if end]
    reach, end = max(ends, key=lambda pair: pair[0] / pair[1], default=(0.0, 1.0))
    if reach / end > _WORTH_SAYING:
        parts.append(f"values up to {value_text(reach)} are clipped at {value_text(end)}")
    return ", ".join(parts)


def _remedy(layer: LayerFacts) -> tuple[str, str]:
    """What to try, and the argument of `quantize` that does it, "" for nothing."""
    if layer.error < _NEGLIGIBLE:
        return "Too little to matter.", ""
    of_weights = layer.relative_error >= layer.input_error
    bits = layer.wbits if of_weights else layer.abits
    more = bits + 1 if bits < MOST_BITS else FLOAT_BITS
    pair = (more, layer.abits) if of_weights else (layer.wbits, more)
    cost = f"{bytes_text(layer.weights * (more - bits) / 8)} more" if of_weights else "no change of size"
    side = "Weights" if of_weights else "Activations"
    gain = "leave about a quarter of that loss" if more < FLOAT_BITS else "leave nothing of that loss"
    name = f"{more} bits" if more < FLOAT_BITS else "floating point"
    return f"{side} in {name} ({cost}) {gain}.", f"bits={{{glob.escape(layer.name)!r}: {pair}}}"


def flattened(configuration: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The values of nested mappings with the keys that lead to them.

    >>> list(flattened({"seed": 0, "bits": {"wbits": 4, "abits": 8}, "layers": {"bits": []}}))
    [('seed', '0'), ('bits.wbits', '4'), ('bits.abits', '8'), ('layers.bits', 'none')]
    """
    for key, value in configuration.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            empty = value is None or value == "" or isinstance(value, (list, tuple)) and not value
            yield f"{prefix}{key}", "none" if empty else printable(str(value))
