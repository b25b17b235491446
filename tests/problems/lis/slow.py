input()
numbers = list(map(int, input().split()))
best = []
for i, number in enumerate(numbers):
    best.append(1 + max((best[j] for j in range(i) if numbers[j] < number), default=0))
print(max(best))
