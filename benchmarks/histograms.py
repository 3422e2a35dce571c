"""Latencies as HdrHistograms of microseconds: three digits, up to two minutes."""

import copyreg
from collections import Counter
from collections.abc import Iterable

from hdrh.histogram import HdrHistogram

LOWEST_US, HIGHEST_US, DIGITS = 1, 120_000_000, 3


def empty() -> HdrHistogram:
    """Return a histogram without values."""
    return HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)


def of_nanoseconds(samples: Iterable[int]) -> HdrHistogram:
    """Return the histogram of samples in nanoseconds; what is below a microsecond counts as one."""
    histogram = empty()
    for microseconds, count in Counter(sample // 1000 for sample in samples).items():
        histogram.record_value(min(HIGHEST_US, max(LOWEST_US, microseconds)), count)
    return histogram


def merged(histograms: Iterable[HdrHistogram]) -> HdrHistogram:
    """Return the sum of histograms."""
    whole = empty()
    for histogram in histograms:
        whole.add(histogram)
    return whole


def encoded(histogram: HdrHistogram) -> str:
    """Return a histogram in the HdrHistogram V2 format, compressed, in base64."""
    text: str = histogram.encode().decode("ascii")
    return text


def decoded(text: str) -> HdrHistogram:
    """Return the histogram of `encoded`."""
    return HdrHistogram.decode(text.encode("ascii"))


# A histogram holds counters of C, which do not pickle: it goes from process to process encoded.
copyreg.pickle(HdrHistogram, lambda histogram: (decoded, (encoded(histogram),)))


def milliseconds(histogram: HdrHistogram, percent: float) -> float:
    """Return a percentile in milliseconds; 100 is the greatest value, and nothing has 0."""
    if histogram.total_count == 0:
        return 0.0
    return float(histogram.get_value_at_percentile(percent)) / 1000


def percentile_curve(histogram: HdrHistogram) -> list[tuple[float, float]]:
    """Return (percent, milliseconds) from 0 to as many nines as there are values for, for a plot."""
    percents = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0]
    nines = 1.0
    while nines * histogram.total_count >= 100 and nines > 1e-4:
        percents += [100 - nines, 100 - nines / 2, 100 - nines / 4]
        nines /= 10
    return [(percent, milliseconds(histogram, percent)) for percent in percents]
