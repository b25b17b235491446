# A list of its own for each number.
n = int(input())
divisors = [[number] * 20 for number in range(n + 1)]
for i in range(2, n + 1):
    if divisors[i][0]:
        for j in range(i * i, n + 1, i):
            divisors[j][0] = 0
print(sum(1 for divisor in divisors[2:] if divisor[0]))
