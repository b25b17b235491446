import itertools, sys

secret = int(open("input").read())
for asked, line in zip(itertools.count(1), sys.stdin):
    guess = int(line)
    if guess == secret:
        print("equal", flush=True)
        print("found", file=sys.stderr)
        sys.exit(0)
    if asked == 20:
        sys.exit("too many questions")
    print("higher" if secret > guess else "lower", flush=True)
sys.exit("the solution ended without the answer")
