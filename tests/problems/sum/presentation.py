import sys

sys.stdout.write(f"{sum(map(int, sys.stdin.read().split()))}\r\n \n")
