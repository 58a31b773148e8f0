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
EXACT_SEARCH = (
    "Ours scores every row that may be among the best once more in float64, and ranks by that: "
    "most of the time for k = 100 and more, where peers return float32's order. In small corpora "
    "and narrow rows the steps between products cost more than the int8 product saves; and so it "
    "is on processors without 8-bit dot products, where that runs at less than twice the rate of "
    "the float32 one."
)
CODING = (
    "The rows are coded in a dozen passes over blocks in cache, and copied; FAISS's flat index "
    "copies them."
)
EVERY_PAIR = (
    "Where most pairs pass, each of them is scored by a product in float64, which runs at half the "
    "rate of one in float32, and every pair is returned in order with its score."
)
# Where a case gives no reason of its own.
OF_TASK = {
    "top-k": EXACT_SEARCH,
    "one shot": EXACT_SEARCH,
    "mapped": EXACT_SEARCH,
    "build": CODING,
}
