import math

print("Area", math.pi * float(input()) ** 2)
