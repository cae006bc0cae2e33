"""All benchmarks, one after the other: ``python -m benchmarks``."""

from benchmarks import hwa_step, random_numbers

random_numbers.main()
hwa_step.main()
