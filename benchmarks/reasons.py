"""Why another is faster where one is: sentences that the cases of cases.py point to."""

READ_ONCE = (
    "Both inputs are read once and that read is most of the time; what is left to win is the rest "
    "up to the bandwidth of a bare sum."
)
CHECKS = (
    "A call of so few numbers is all overhead: checking arguments, range and the way to take in "
    "Python costs more than torch's whole function."
)
SMALL_NARROW = (
    "So few rows fit in cache as they are; ours widens them to float32 first, for an error that is "
    "several times smaller, and torch multiplies in the narrow type."
)
PRODUCT_BOUND = (
    "The float32 product is nearly all of the time and the same routine in all of these: what is "
    "left is memory for the result, and the noise of the machine."
)
MIRROR = (
    "Half of the product is saved, but the other half of the matrix has to be mirrored, which "
    "costs the bandwidth of a read and a write."
)
