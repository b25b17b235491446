rows, columns = map(int, input().split())
maze = [input() for _ in range(rows)]
places = {(r, c): maze[r][c] for r in range(rows) for c in range(columns) if maze[r][c] != "#"}
edge = [place for place, what in places.items() if what == "S"]
steps, seen, found = 0, set(edge), None
while edge and found is None:
    if any(places[place] == "T" for place in edge):
        found = steps
    near = {(r + y, c + x) for r, c in edge for y, x in ((1, 0), (-1, 0), (0, 1), (0, -1))}
    edge = [place for place in near if place in places and place not in seen]
    seen.update(edge)
    steps += 1
if found is None:
    raise ValueError("walled")
print(found)
