"""Random numbers of noise on a processor, drawn number by number by machine code that numba makes.

Apart from `lenslib.instruments`, which imports it when noise is first drawn on a processor: accelerators do without.
Every function lets go of the interpreter's lock and draws from the generator that it is given, and from no other.
"""

import math

import numpy as np
from numba import njit


def compiled(function):
    """`function` as machine code, which is kept on disk (for this user where the library's folder is read-only)."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder at all can be written
        return njit(nogil=True)(function)


@compiled
def fill_normal(rng: np.random.Generator, numbers: np.ndarray) -> None:
    """Fill `numbers` [n] with standard normal ones."""
    for i in range(numbers.size):
        numbers[i] = rng.standard_normal()


@compiled
def fill_poisson(rng: np.random.Generator, rates: np.ndarray, counts: np.ndarray) -> None:
    """Fill `counts` [n] with Poisson numbers of the given `rates` [n]; both are float32, which holds numbers up to 2^24
    exactly and rounds those above.

    From rate 10 on by Ahrens & Dieter (1982, ACM Trans. Math. Softw. 8, 163, algorithm PD): a rounded normal number,
    which nearly always is found to be right at the cost of one uniform number and no logarithm. Below 10 by multiplying
    uniform numbers (Knuth, The Art of Computer Programming, vol. 2, section 3.4.1). Both are exact. A rate below 0
    counts 0; NaN and infinity stay what they are.
    """
    for i in range(rates.size):
        # in single precision, logarithms of the large factorials are off by whole numbers
        rate = np.float64(rates[i])
        if 10 <= rate < np.inf:
            root, u = math.sqrt(rate), rng.random()
            count = np.floor(rate + root * rng.standard_normal())
            lack = rate - count
            if 6 * rate * rate * u < lack * lack * lack:
                count = _corrected(rng, rate, root, count, u)
            counts[i] = count
        elif 0 < rate < 10:
            count, product, least = 0, rng.random(), math.exp(-rate)
            while product > least:
                count += 1
                product *= rng.random()
            counts[i] = count
        else:
            counts[i] = 0 if rate <= 0 else rate


@compiled
def _corrected(rng, rate, root, count, u):
    """`count` where it is not one of those that the normal law has too many of, else one of those it has too few of."""
    if count >= 0:
        wanted, had = _chances(rate, root, count)
        if had * (1 - u) <= wanted:
            return count
    # what the normal law lacks is below 0.1069 / rate times the double exponential law about 1.8 deviations
    while True:
        distance, v = rng.standard_exponential(), 2 * rng.random() - 1
        deviation = 1.8 + math.copysign(distance, v)
        if deviation > -0.6744:
            count = np.floor(rate + root * deviation)
            wanted, had = _chances(rate, root, count)
            if 0.1069 / rate * abs(v) <= (wanted - had) * math.exp(distance):
                return count


@compiled
def _chances(rate, root, count):
    """Of `count`, in the Poisson law and in the normal law of the same mean and variance, rounded down."""
    low, high = (count - rate) / root, (count + 1 - rate) / root
    if low > 0:  # the lower tail is the upper one, and small numbers keep their digits
        low, high = -high, -low
    normal = (math.erfc(-high / math.sqrt(2)) - math.erfc(-low / math.sqrt(2))) / 2
    return math.exp(count * math.log(rate) - rate - math.lgamma(count + 1)), normal
