print(500000, flush=True)
numbers = [0] * 100_000_000
print(len(numbers), flush=True)
