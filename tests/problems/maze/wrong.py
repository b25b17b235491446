# As if there were no walls.
rows, columns = map(int, input().split())
maze = [input() for _ in range(rows)]
at = {maze[r][c]: (r, c) for r in range(rows) for c in range(columns)}
print(abs(at["S"][0] - at["T"][0]) + abs(at["S"][1] - at["T"][1]))
