# Blocks that rise, of numbers that fall: one of each block is the longest there is. Two of the numbers are equal.
import json

BLOCKS, SIZE = 400, 500
numbers = [block * SIZE - at for block in range(1, BLOCKS + 1) for at in range(SIZE)]
numbers.append(numbers[-1])
stdin = f"{len(numbers)}\n{' '.join(map(str, numbers))}\n"
print(json.dumps([{"name": "large", "stdin": stdin, "expected": f"{BLOCKS}\n"}]))
