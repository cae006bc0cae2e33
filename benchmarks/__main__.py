"""All benchmarks, one after the other: ``python -m benchmarks``."""

from benchmarks import hwa_step, in_memory, random_numbers

random_numbers.main()
hwa_step.main()
in_memory.main()
