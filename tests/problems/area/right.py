import math

print("area", math.pi * float(input()) ** 2)
