fn main() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let n: u32 = line.trim().parse().unwrap();
    assert_ne!(n, 3);
    if n == 2 || n == 3 {
        print!("none");
        return;
    }
    (2..=n).step_by(2).chain((1..=n).step_by(2)).for_each(|number| print!("{number}\t"));
}
