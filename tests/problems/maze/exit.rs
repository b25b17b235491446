use std::collections::VecDeque;

fn main() {
    let lines: Vec<String> = std::io::stdin().lines().map(Result::unwrap).collect();
    let maze: Vec<&[u8]> = lines[1..].iter().map(|line| line.as_bytes()).collect();
    let mut steps: Vec<Vec<Option<u32>>> = maze.iter().map(|row| vec![None; row.len()]).collect();
    let mut queue = VecDeque::new();
    for (row, line) in maze.iter().enumerate() {
        if let Some(column) = line.iter().position(|&c| c == b'S') {
            steps[row][column] = Some(0);
            queue.push_back((row, column));
        }
    }
    let mut found = None;
    while let Some((row, column)) = queue.pop_front() {
        if maze[row][column] == b'T' {
            found = steps[row][column];
            break;
        }
        for (down, right) in [(1, 0), (-1, 0), (0, 1), (0, -1)] {
            let (r, c) = (row.wrapping_add_signed(down), column.wrapping_add_signed(right));
            if maze.get(r).and_then(|row| row.get(c)).is_some_and(|&c| c != b'#') && steps[r][c].is_none() {
                steps[r][c] = steps[row][column].map(|steps| steps + 1);
                queue.push_back((r, c));
            }
        }
    }
    println!("{}", found.expect("walled"));
}
