# A float has sixteen digits, and the end of the input is not the end of the line.
print(format(sum(map(float, input().split())), "g"))
