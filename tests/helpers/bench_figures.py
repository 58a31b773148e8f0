"""Figures of benchmarks, made up for the tests of what shows them."""


def entry(median, floor=False, approximate=False, error=1e-7, ours=1.0, spread=0.01):
    low, high = median * (1 - spread), median * (1 + spread)
    ratio = median / ours
    return {
        "floor": floor,
        "approximate": approximate,
        "error": None if floor else error,
        "wrong": None,
        "of": None,
        "seconds": {"median": median, "low": low, "high": high},
        "rounds": 9,
        "ours_is_faster": {
            "median": ratio,
            "low": ratio * (1 - spread),
            "high": ratio * (1 + spread),
        },
    }


def case(n=1000, d=384, ours=1.0, theirs=2.0, **rest):
    made = {
        "name": f"paired rows ({n}, {d}), float32, 2 threads",
        "task": "rows",
        "sizes": {"n": n, "d": d},
        "dtype": "float32",
        "threads": 2,
        "data": "gaussian",
        "threshold": 0.0,
        "device": "cpu",
        "headline": True,
        "why": "",
        "targets": [],
        "contenders": {
            "cossim_fast": entry(ours, ours=ours),
            "theirs": entry(theirs, ours=ours),
            "a read": entry(ours / 4, floor=True, ours=ours),
        },
        "fastest": "theirs",
        "others_busy": 0.0,
    }
    return made | rest


def results(*cases):
    environment = {
        "processor": "a processor",
        "processors": 2,
        "capability": "AVX2",
        "instructions": ["avx2"],
        "system": "Linux",
        "versions": {"Python": "3"},
        "blas": "a BLAS",
        "commit": "abc",
        "minutes": 1.0,
    }
    return {"environment": environment, "cases": list(cases)}
