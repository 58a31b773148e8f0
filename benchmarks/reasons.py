"""Why another is faster where one is: sentences that the cases of cases.py point to."""

READ_ONCE = (
    "NumKong and torch's compiler run one loop of machine code that reads each number once, at "
    "nearly the bandwidth of a bare sum; ours is several of torch's operations over blocks that "
    "stay in cache, and needs no compiler."
)
CHECKS = (
    "A call of so few numbers is all overhead: checking arguments, range and the way to take in "
    "Python costs more than the whole function of torch, or of NumKong, which is bound to Python "
    "directly and checks less."
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
WIDENED = (
    "sentence-transformers widens the inputs and returns a float32 matrix; ours rounds the result "
    "to the dtype of the inputs, as torch does, which is one more pass over it."
)
