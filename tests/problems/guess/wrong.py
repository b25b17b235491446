for guess in range(1, 1000001):
    print(guess, flush=True)
    if input() == "equal":
        break
