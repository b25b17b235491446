import bisect, sys

ends = []
for number in map(int, sys.stdin.read().split()[1:]):
    place = bisect.bisect_left(ends, number)
    ends[place:place + 1] = [number]
print(len(ends))
